"""Selectors made of scikit-learn's and lightgbm's estimators, which are fitted on the host."""

from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from dflax import validation
from dflax.inference.selection.factors import factorised
from dflax.inference.selection.performance import Performance, best_method, centred
from dflax.inference.selection.selector import (
    Selector,
    Standard,
    lesson,
    of_one,
    standard_of,
    standardised,
)

HOST = (
    "An estimator of the host cannot be fitted in a compiled program: call fit without jit or vmap."
)


class Estimated(NamedTuple):
    """A fitted estimator.

    Attributes:
      estimator: scikit-learn's, or one with its methods `fit` and `predict`.
      standard: of the descriptors.
      methods: `[K, r]` what turns its predictions into scores.
    """

    estimator: Any
    standard: Standard
    methods: np.ndarray


def classified(estimator: Any = None) -> Selector:
    """A classifier of the fastest observed method; its score is 1 less the method's probability.

    Args:
      estimator: unfitted, for example `sklearn.svm.SVC()`; one without `predict_proba` has scores 0
        and 1. None: a random forest of 100 trees. Its `random_state` is set from the key of `fit`.

    Raises:
      TypeError: naming the argument.
    """
    if estimator is None:
        from sklearn.ensemble import RandomForestClassifier

        estimator = RandomForestClassifier(100)
    _check_estimator(estimator)

    def fit(key: Key[Array, ""], x: Any, table: Performance, weights: Any = None) -> Estimated:
        inputs, table, standard = _rows(key, x, table, weights)
        known = np.asarray(table.observed.any(-1))
        fitted = _fitted(estimator, key, inputs[known], np.asarray(best_method(table))[known])
        return Estimated(fitted, standard, np.eye(table.seconds.shape[1], dtype=np.float32))

    def score(fitted: Estimated, x: Array) -> Any:
        inputs = np.asarray(standardised(x, fitted.standard))
        count = len(fitted.methods)
        if not hasattr(fitted.estimator, "predict_proba"):
            return np.asarray(of_one(fitted.estimator.predict(inputs).astype(int), count))
        scores = np.ones((len(inputs), count), np.float32)
        scores[:, fitted.estimator.classes_.astype(int)] -= fitted.estimator.predict_proba(inputs)
        return scores

    return Selector(fit, score)


def regressed(estimator: Any = None, *, row_centred: bool = False) -> Selector:
    """A regressor of log seconds that sees a task's descriptors and one of K indicators of the method.

    Args:
      estimator: unfitted; None: scikit-learn's histogram gradient boosting. Its `random_state` is set
        from the key of `fit`.
      row_centred: whether it learns z, the log seconds less the row's mean, instead; its selector then
        predicts no times.

    Raises:
      TypeError: naming the argument.
    """
    if estimator is None:
        from sklearn.ensemble import HistGradientBoostingRegressor

        estimator = HistGradientBoostingRegressor()
    _check_estimator(estimator)
    validation.flag("row_centred", row_centred)

    def fit(key: Key[Array, ""], x: Any, table: Performance, weights: Any = None) -> Estimated:
        inputs, table, standard = _rows(key, x, table, weights)
        methods = np.eye(table.seconds.shape[1], dtype=np.float32)
        target = centred(table).relative if row_centred else np.log(table.seconds)
        task, method = np.nonzero(np.asarray(table.observed))
        pairs = np.concatenate([inputs[task], methods[method]], -1)
        fitted = _fitted(estimator, key, pairs, np.asarray(target)[task, method])
        return Estimated(fitted, standard, methods)

    def score(fitted: Estimated, x: Array) -> Any:
        inputs = np.asarray(standardised(x, fitted.standard))
        count = len(fitted.methods)
        pairs = np.concatenate(
            [np.repeat(inputs, count, 0), np.tile(fitted.methods, (len(inputs), 1))], -1
        )
        return fitted.estimator.predict(pairs).reshape(-1, count).astype(np.float32)

    return Selector(fit, score, None if row_centred else score)


def alors(rank: int = 3, *, estimator: Any = None) -> Selector:
    """ALORS: the table as U V^T of rank r, U predicted from the descriptors, the argmin of U_hat V^T.

    Args:
      rank: r >= 1; by `fit`, at most K.
      estimator: an unfitted regressor of several outputs; None: a random forest of 60 trees. Its
        `random_state` is set from the key of `fit`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Misir and Sebag, Alors: an algorithm recommender system, Artificial Intelligence 244, 2017.
    """
    validation.integer("rank", rank, low=1)
    if estimator is None:
        from sklearn.ensemble import RandomForestRegressor

        estimator = RandomForestRegressor(60)
    _check_estimator(estimator)

    def fit(key: Key[Array, ""], x: Any, table: Performance, weights: Any = None) -> Estimated:
        inputs, table, standard = _rows(key, x, table, weights)
        found = factorised(table, rank)
        fitted = _fitted(estimator, key, inputs, np.asarray(found.tasks))
        return Estimated(fitted, standard, np.asarray(found.methods))

    def score(fitted: Estimated, x: Array) -> Any:
        told = fitted.estimator.predict(np.asarray(standardised(x, fitted.standard)))
        return (told.reshape(len(told), -1) @ fitted.methods.T).astype(np.float32)

    return Selector(fit, score)


def lightgbm_estimator(predicts: Literal["method", "time"], *, trees: int = 100) -> Any:
    """An unfitted estimator of lightgbm, for `classified` ("method") or `regressed` ("time").

    Args:
      predicts: what it predicts.
      trees: >= 1.

    Raises:
      ValueError, TypeError: naming the argument.
      ImportError: lightgbm is not installed.
    """
    validation.choice("predicts", predicts, ("method", "time"))
    validation.integer("trees", trees, low=1)
    try:
        import lightgbm
    except ImportError as error:
        raise ImportError(
            "lightgbm_estimator needs lightgbm, which is not installed: pip install lightgbm."
        ) from error
    kind = lightgbm.LGBMClassifier if predicts == "method" else lightgbm.LGBMRegressor
    return kind(n_estimators=trees, verbose=-1, n_jobs=1)


def _check_estimator(estimator: Any) -> None:
    if isinstance(estimator, type) or not (
        callable(getattr(estimator, "fit", None)) and callable(getattr(estimator, "predict", None))
    ):
        raise TypeError(
            "estimator must be an estimator with fit and predict, got "
            f"{validation.shown(estimator)}. For example sklearn.svm.SVC()."
        )


def _rows(
    key: Any, x: Any, table: Performance, weights: Any
) -> tuple[np.ndarray, Performance, Standard]:
    """The training tasks' standardised descriptors and table on the host, each task once."""
    validation.typed_key("key", key)
    x, table, weights = lesson(x, table, weights)
    if any(map(validation.is_traced, (key, x, weights, *table))):
        raise TypeError(HOST)
    standard = standard_of(x, weights)
    rows = np.flatnonzero(np.asarray(weights) > 0)
    host: Any = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], table)
    return np.asarray(standardised(x, standard))[rows], host, standard


def _fitted(estimator: Any, key: Key[Array, ""], inputs: np.ndarray, targets: np.ndarray) -> Any:
    """A copy of the estimator, seeded and fitted."""
    from sklearn.base import clone

    own = clone(estimator)
    if "random_state" in own.get_params():
        own.set_params(random_state=int(jax.random.bits(key)) % 2**31)
    return own.fit(inputs, targets)
