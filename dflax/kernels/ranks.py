"""Which place each entry of a row has, found by comparing all pairs where rows are short."""

import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

# A sort with numbers beside the values costs a CPU more than the comparisons of all pairs up to here.
PAIRS = 128


def ranks(values: Shaped[Array, "*rows k"]) -> Int[Array, "*rows k"]:
    """How many entries of its row come before each one: `argsort(argsort(values))`, stable.

    Equal entries stand in the order of their places, NaNs at the end.

    Args:
      values: `[..., k]`, real numbers.

    Returns:
      `[..., k]` int32, in every row a permutation of 0, ..., k - 1. For example (1, 0, 2) of (5, 3, 5).
    """
    length = values.shape[-1]
    if length > PAIRS:
        return jnp.argsort(jnp.argsort(values, axis=-1), axis=-1).astype(jnp.int32)
    # Sums go over an axis that is not the last, along which a CPU adds many rows' entries at once.
    first, second = values[..., :, None], values[..., None, :]
    places = jnp.arange(length)
    earlier = places[:, None] < places
    nan, other = jnp.isnan(first), jnp.isnan(second)
    smaller = (first < second) | (~nan & other)
    same = (first == second) | (nan & other)
    return jnp.sum(smaller | same & earlier, axis=-2, dtype=jnp.int32)
