"""Means over segments: domains of queries, years of models."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation


def segment_mean(
    values: Float[Array, "... n"],
    segments: Int[Array, " n"],
    count: int,
    *,
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, "... count"]:
    """The mean of each segment along the last axis; NaN for a segment of no weight.

        mean_s = sum_{i in s} w_i x_i / sum_{i in s} w_i

    Args:
      values: `[..., n]`.
      segments: `[n]` integers in [0, count): a query's domain, a model's year.
      count: how many segments there are, >= 1.
      weights: `[n]` >= 0; default 1 each.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("count", count, low=1)
    given = validation.array("values", values, kind="real")
    if given.ndim == 0 or 0 in given.shape:
        raise ValueError(
            f"values must have at least one entry along the last axis, got {given.shape}."
        )
    (n,) = given.shape[-1:]
    fix = "One for each entry along the last axis of values."
    validation.array(
        "segments", segments, kind="integer", shape=(n,), low=0, high=count - 1, fix=fix
    )
    own = jnp.ones(n) if weights is None else weights
    validation.array("weights", own, kind="real", shape=(n,), low=0.0)
    own, rows = jnp.asarray(own, jnp.float32), jnp.moveaxis(jnp.asarray(values, jnp.float32), -1, 0)
    heavy = rows * own.reshape(n, *(1,) * (rows.ndim - 1))
    # An empty segment has no mean, and 0 / 0 says so.
    sums = jax.ops.segment_sum(heavy, jnp.asarray(segments), count)
    totals = jax.ops.segment_sum(own, jnp.asarray(segments), count)
    return jnp.moveaxis(sums, 0, -1) / totals
