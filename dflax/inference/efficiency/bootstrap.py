"""Confidence intervals of whatever is computed of queries, by the bootstrap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation


class Interval(NamedTuple):
    """An estimate and how far it may be off, each a tree like the statistic's.

    Attributes:
      estimate: of the queries as they are.
      low: lower end.
      high: upper end.
      deviation: standard deviation over resamples.
    """

    estimate: PyTree[Array]
    low: PyTree[Array]
    high: PyTree[Array]
    deviation: PyTree[Array]


def bootstrap(
    key: Key[Array, ""],
    statistic: Callable[[Float[Array, " Q"]], Any],
    queries: int,
    *,
    resamples: int = 1000,
    level: float | Float[Array, ""] = 0.95,
) -> Interval:
    """Percentile intervals of a statistic under resampled queries.

        counts_r ~ Multinomial(Q, 1/Q),  s_r = statistic(counts_r)
        low, high = quantiles (1 - level) / 2 and (1 + level) / 2 of s_r

    A resample is the number of times that each query is drawn, so the same queries are drawn for all
    models and accelerators, and intervals of their differences and ratios are intervals of pairs. All
    resamples are one mapped program.

    Args:
      key: of the resamples.
      statistic: `weights [Q] -> tree of arrays`, for example
        `lambda weights: efficiency(measured, weights=weights)`.
      queries: Q >= 1.
      resamples: >= 2.
      level: in (0, 1); traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    validation.function("statistic", statistic, "It gets weights of queries.", takes=1)
    validation.integer("queries", queries, low=1)
    validation.integer("resamples", resamples, low=2)
    validation.probability("level", level, low_open=True, high_open=True)

    def resampled(key: Key[Array, ""]) -> Any:
        drawn = jax.random.randint(key, (queries,), 0, queries)
        return statistic(jnp.zeros(queries).at[drawn].add(1.0))

    estimate = statistic(jnp.ones(queries))
    found = jax.vmap(resampled)(jax.random.split(key, resamples))
    tail = (1.0 - level) / 2.0

    def quantile(at: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.quantile(leaf, at, axis=0), found)

    deviation = jax.tree.map(lambda leaf: jnp.std(leaf, axis=0, ddof=1), found)
    return Interval(estimate, quantile(tail), quantile(1.0 - tail), deviation)
