"""Who chooses accelerations in the study, and how each is fitted and judged on splits of a table."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dflax.inference import selection as sel

LEARNED = "MLP (ours)"


class Problem(NamedTuple):
    """S splits of tables, each leaf `[S, ...]`.

    Attributes:
      x: descriptors `[S, n, d]`.
      table: `[S, n, K]`.
      out: `[S, n]` the test tasks.
    """

    x: Any
    table: sel.Performance
    out: Any


class Training(NamedTuple):
    """How long perceptrons are trained."""

    epochs: int
    batch: int
    members: int


def perceptron(training: Training, **options: Any) -> sel.Selector:
    """The meta-learned selector of the study."""
    return sel.meta_learned(
        epochs=training.epochs,
        batch=training.batch,
        members=training.members,
        optimizer=optax.adamw(1e-3, weight_decay=1e-4),
        **options,
    )


def traced(training: Training, clusters: int) -> dict[str, sel.Selector]:
    """Selectors that are fitted for all splits in one program."""
    return {
        "random": sel.random_choice(),
        "none": sel.always(0),
        "always all": sel.always(4),
        "global best": sel.global_best(),
        "expert rule": sel.by_rule(sel.expert_rule),
        "ISAC": sel.isac(clusters),
        "1-NN": sel.nearest(),
        LEARNED: perceptron(training),
    }


def of_the_host() -> dict[str, sel.Selector]:
    """scikit-learn's predictors, and lightgbm's where it is installed."""
    from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.svm import SVC

    found = {
        "random forest": sel.classified(),
        "ALORS (forest)": sel.alors(),
        "boosted trees, classifier": sel.classified(GradientBoostingClassifier(n_estimators=50)),
        "boosted trees, raw log-times": sel.regressed(HistGradientBoostingRegressor()),
        "boosted trees, row-centred": sel.regressed(
            HistGradientBoostingRegressor(), row_centred=True
        ),
        "SVM": sel.classified(SVC(C=10.0)),
    }
    if importlib.util.find_spec("lightgbm") is not None:
        found["lightgbm, classifier"] = sel.classified(sel.lightgbm_estimator("method"))
        found["lightgbm, row-centred"] = sel.regressed(
            sel.lightgbm_estimator("time", trees=300), row_centred=True
        )
    return found


def chosen_by(selector: sel.Selector, problem: Problem, keys: Any) -> np.ndarray:
    """`[S, n]` choices of a selector that is fitted in one program for all splits."""

    def one(key: Any, split: Problem) -> Any:
        fitted = selector.fit(key, split.x, split.table, ~split.out)
        return sel.choose(selector.score(fitted, split.x))

    return np.asarray(jax.jit(jax.vmap(one))(keys, problem))


def chosen_on_the_host(selector: sel.Selector, problem: Problem, keys: Any) -> np.ndarray:
    """`[S, n]` choices of a selector that is fitted on the host, split by split."""
    from threadpoolctl import threadpool_limits

    rows = []
    for at, key in enumerate(keys):
        split = jax.tree.map(lambda leaf, at=at: leaf[at], problem)
        # Threads that wait for each other on a busy machine take many times as long as one.
        with threadpool_limits(1):
            fitted = selector.fit(key, split.x, split.table, ~split.out)
            rows.append(np.asarray(sel.choose(selector.score(fitted, split.x))))
    return np.stack(rows)


def judge(chosen: np.ndarray, problem: Problem, weights: Any = None) -> dict[str, np.ndarray]:
    """Each of `Judged`, `[S]`, over the test tasks."""
    judged = jax.jit(jax.vmap(sel.judged))
    out = problem.out if weights is None else weights
    found = judged(chosen, problem.table.seconds, jnp.asarray(out))
    return {name: np.asarray(value) for name, value in found._asdict().items()}


def everyone(
    problem: Problem,
    keys: Any,
    training: Training,
    clusters: int,
    stage: Callable[..., Any],
    name: str,
) -> dict[str, np.ndarray]:
    """`[S, n]` choices of every selector, by its name."""

    def all_traced() -> dict[str, np.ndarray]:
        return {
            who: chosen_by(selector, problem, keys)
            for who, selector in traced(training, clusters).items()
        }

    def all_others() -> dict[str, np.ndarray]:
        return {
            who: chosen_on_the_host(selector, problem, keys)
            for who, selector in of_the_host().items()
        }

    found = stage(f"{name}: selectors of ours", all_traced)
    found |= stage(f"{name}: scikit-learn's and lightgbm's", all_others)
    best = sel.best_method
    return {**found, "oracle": np.asarray(jax.vmap(best)(problem.table))}
