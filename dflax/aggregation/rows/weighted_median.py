"""The coordinate-wise median by weight: a point that no minority of the weight can move away."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax.aggregation.rows.column_blocks import map_columns
from dflax.aggregation.rows.order_keys import from_keys, to_keys
from dflax.aggregation.rows.order_statistics import median_rows
from dflax.clients import platform
from dflax.kernels.bisection import last_where

# Entries of a block that is read once for every bit of a key: they stay in the second-level cache.
ELEMENTS = 1 << 15


def weighted_centre(values: Float[Array, "n d"], weights: Float[Array, " n"]) -> Float[Array, " d"]:
    """A median by weight: `median_rows` where all weights are the same or 0, which costs a fifth.

    Args:
      values: `[n, d]` of a floating-point dtype.
      weights: `[n]`, >= 0. Rows of weight 0 do not count, whatever they hold.

    Returns:
      `[d]`, without a gradient; 0 where all weights are 0.
    """
    values, weights = jax.lax.stop_gradient((values, weights))
    same = jnp.all((weights == weights.max()) | (weights == 0))

    def by_count(values: Float[Array, "n d"], weights: Float[Array, " n"]) -> Float[Array, " d"]:
        return median_rows(values, weights > 0)

    return jax.lax.cond(same, by_count, weighted_median_rows, values, weights)


def weighted_median_rows(
    values: Float[Array, "n d"], weights: Float[Array, " n"]
) -> Float[Array, " d"]:
    """In each coordinate the least value at or below which half of the weight lies.

        out_j = min { v in x_.j : sum_i w_i [x_ij <= v] >= (1/2) sum_i w_i }

    Rows that hold less than half of the weight may be arbitrary: each coordinate of the result lies
    between the smallest and the largest of the other rows there. NaNs count as larger than +inf.

    A value is found bit by bit, from weights of what lies below a candidate, so nothing is sorted.
    The result is a piecewise constant choice, and no gradient goes through it.

    Args:
      values: `[n, d]` of a floating-point dtype.
      weights: `[n]`, >= 0. Rows of weight 0 do not count, whatever they hold.

    Returns:
      `[d]`; 0 where all weights are 0. For example 5 of 5, 6, 7 with weights 3, 1, 1.
    """
    values, weights = jax.lax.stop_gradient((values, weights))
    half = weights.sum() / 2

    def median(block: Float[Array, "n c"]) -> Float[Array, " c"]:
        keys = to_keys(block)

        def above(candidate: Int[Array, " c"]) -> Bool[Array, " c"]:
            return jnp.sum(jnp.where(keys < candidate, weights[:, None], 0), axis=0) < half

        found = last_where(above, keys.dtype, block.shape[1:])
        return jnp.where(half > 0, from_keys(found, block.dtype), 0)

    width = max(16, ELEMENTS // values.shape[0]) if platform() == "cpu" else 1 << 30
    return map_columns(median, values, width)
