"""What a selector is, and the simplest of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.inference.selection.judging import checked_weights
from dflax.inference.selection.performance import Performance, centred, check_table

# The score of a method that is not to be chosen: far above any log-time.
NEVER = 1e6


class Selector(NamedTuple):
    """How a method is chosen for tasks that nobody has tried it on.

    Attributes:
      fit: `(key, x, table, weights=None) -> fitted`: learns from training tasks, `x [n, d]` their
        descriptors, `table` their `Performance`, `weights [n]` >= 0 or booleans, 0 for tasks that are
        not of the training set, so that many splits of one table are one `jax.vmap`.
      score: `(fitted, x [m, d]) -> [m, K]`, lower is better: the choice is the argmin, the lowest
        index among equals.
      log_seconds: `(fitted, x) -> [m, K]` predicted log-times, for costs; None where it predicts none.
    """

    fit: Callable[..., Any]
    score: Callable[[Any, Array], Float[Array, "m K"]]
    log_seconds: Callable[[Any, Array], Float[Array, "m K"]] | None = None


class Standard(NamedTuple):
    """Means and deviations of descriptors, `[d]` each, of training tasks."""

    mean: Float[Array, " d"]
    deviation: Float[Array, " d"]


def standard_of(x: Float[Array, "n d"], weights: Float[Array, " n"]) -> Standard:
    """Of the training tasks; the deviation of a descriptor that never changes is set to 1."""
    counted = weights / weights.sum()
    mean = counted @ x
    deviation = jnp.sqrt(counted @ (x - mean) ** 2)
    # What differs by rounding alone is constant.
    constant = deviation <= 1e-6 * jnp.maximum(jnp.abs(mean), 1.0)
    return Standard(mean, jnp.where(constant, 1.0, deviation))


def standardised(x: Float[Array, "m d"], standard: Standard) -> Float[Array, "m d"]:
    """The descriptors in units of the training tasks."""
    return (x - standard.mean) / standard.deviation


def lesson(
    x: Any, table: Performance, weights: Any
) -> tuple[Float[Array, "n d"], Performance, Float[Array, " n"]]:
    """What every `fit` is given, checked: descriptors, table, weights."""
    check_table(table)
    n = table.seconds.shape[0]
    given = validation.array("x", x, kind="real", shape=(n, "d"), fix="A row for each task.")
    return jnp.asarray(given, jnp.float32), table, checked_weights(weights, n)


def choose(scores: Float[Array, "m K"]) -> Array:
    """`[m]` the method of the lowest score, the lowest index among equals.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.array("scores", scores, kind="real", shape=("m", "K"))
    return jnp.argmin(jnp.asarray(given), -1)


def of_one(method: Array, methods: int) -> Float[Array, "... K"]:
    """Scores that are 0 of the chosen method and 1 of all others."""
    return 1.0 - jnp.eye(methods)[method]


def random_choice() -> Selector:
    """A method drawn uniformly for each task; the draw is that of the key of `fit`."""

    def fit(key: Key[Array, ""], x: Any, table: Performance, weights: Any = None) -> Any:
        validation.typed_key("key", key)
        lesson(x, table, weights)
        return key, jnp.zeros(table.seconds.shape[1])

    def score(fitted: Any, x: Array) -> Array:
        key, none = fitted
        return jax.random.uniform(key, (len(x), len(none)))

    return Selector(fit, score)


def always(method: int) -> Selector:
    """One method for all tasks, such as none (0) or all of them together.

    Args:
      method: its index, >= 0.

    Raises:
      TypeError, ValueError: naming the argument; by `fit`, a method that the table does not have.
    """
    validation.integer("method", method, low=0)

    def fit(key: Key[Array, ""], x: Any, table: Performance, weights: Any = None) -> Array:
        lesson(x, table, weights)
        methods = table.seconds.shape[1]
        if method >= methods:
            raise ValueError(f"method must be in [0, {methods}) for this table, got {method}.")
        return of_one(jnp.int32(method), methods)

    return Selector(fit, _one_for_all)


def global_best() -> Selector:
    """The method that is best on average: argmin_k mean_n z_nk, z the row-centred log-times."""

    def fit(key: Key[Array, ""], x: Any, table: Performance, weights: Any = None) -> Array:
        _, table, weights = lesson(x, table, weights)
        return mean_relative(table, weights)

    return Selector(fit, _one_for_all)


def by_rule(rule: Callable[[Array], Array]) -> Selector:
    """A rule that somebody wrote down.

    Args:
      rule: `x [m, d] -> [m]` methods in [0, K).

    Raises:
      TypeError: no function of one argument.
    """
    validation.function("rule", rule, "It gets descriptors [m, d].", takes=1)

    def fit(key: Key[Array, ""], x: Any, table: Performance, weights: Any = None) -> Array:
        lesson(x, table, weights)
        return jnp.zeros(table.seconds.shape[1])

    return Selector(fit, lambda fitted, x: of_one(rule(x), len(fitted)))


def mean_relative(table: Performance, weights: Float[Array, " n"]) -> Float[Array, " K"]:
    """Mean of z over the training tasks that tried each method; NEVER of one that none tried."""
    counted = weights[:, None] * table.observed
    total = counted.sum(0)
    found = (counted * centred(table).relative).sum(0) / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, found, NEVER)


def _one_for_all(fitted: Float[Array, " K"], x: Array) -> Float[Array, "m K"]:
    return jnp.broadcast_to(fitted, (len(x), len(fitted)))
