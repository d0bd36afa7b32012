"""Boxes that must hold the truth, and what is left of several of them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def intersection(
    low: Float[Array, "n d"], high: Float[Array, "n d"], there: Bool[Array, " n"]
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """The intersection of boxes, one after another, without those that would leave nothing.

    Args:
      low: `[n, d]` the lower corners.
      high: `[n, d]` the upper corners.
      there: `[n]` which of the boxes count.

    Returns:
      Its corners; infinite where no box counts.
    """
    low = jnp.where(there[:, None], low, -jnp.inf)
    high = jnp.where(there[:, None], high, jnp.inf)
    least, most = low.max(0), high.min(0)

    def one_more(turn: tuple[Any, Array, Array]) -> tuple[Any, Array, Array]:
        at, least, most = turn
        narrow, wide = jnp.maximum(least, low[at]), jnp.minimum(most, high[at])
        fits = jnp.all(narrow <= wide)
        return at + 1, jnp.where(fits, narrow, least), jnp.where(fits, wide, most)

    # Where all agree the order does not matter, and there is nothing to go through.
    agree = jnp.all(least <= most)
    everything = (jnp.full_like(least, -jnp.inf), jnp.full_like(most, jnp.inf))
    first = jnp.where(agree, low.shape[0], 0)
    _, kept_low, kept_high = jax.lax.while_loop(
        lambda turn: turn[0] < low.shape[0], one_more, (first, *everything)
    )
    return jnp.where(agree, least, kept_low), jnp.where(agree, most, kept_high)


def centre(
    low: Float[Array, " d"], high: Float[Array, " d"], widest: float | Float[Array, ""]
) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
    """The centre of a box, and whether no side is longer than `widest`; 0 where it is infinite."""
    valid = jnp.all(high - low < widest)
    return jnp.where(valid, 0.5 * (low + high), 0.0), valid
