"""Ranks as numbers in [-1, 1], and back."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.data.dataset import AnyArray

# Far above the rounding of float32 at any rank, far below a rank.
NUDGE = 1e-4


def decode_ranks(x: Float[AnyArray, "..."], low: int, high: int) -> Int[Array, "..."]:
    """Numbers as ranks: `low + floor((x + 1) / 2 (high - low))`, x cut to [-1, 1].

    `high` itself is what x = 1 alone stands for, and the other ranks have equal shares of [-1, 1). A
    nudge of 1e-4 of a rank keeps rounding from turning `decode_ranks(encode_ranks(r))` into r - 1.

    Args:
      x: of any shape.
      low: smallest rank, >= 0.
      high: largest rank, > `low`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.array("x", x, kind="real")
    check_ranks(low, high)
    share = 0.5 * (jnp.clip(jnp.asarray(x, float), -1.0, 1.0) + 1.0)
    return low + jnp.minimum(jnp.floor(share * (high - low) + NUDGE), high - low).astype(jnp.int32)


def encode_ranks(ranks: Int[AnyArray, "..."], low: int, high: int) -> Float[Array, "..."]:
    """Ranks as numbers: `2 (r - low) / (high - low) - 1`.

    Args:
      ranks: r in [low, high], of any shape.
      low: smallest rank, >= 0.
      high: largest rank, > `low`.

    Raises:
      TypeError, ValueError: naming the argument; ranks above the adapter's.
    """
    check_ranks(low, high)
    fix = "No rank is above the adapter's."
    validation.array("ranks", ranks, kind="integer", low=low, high=high, fix=fix)
    return 2.0 * (jnp.asarray(ranks) - low).astype(float) / (high - low) - 1.0


def check_ranks(low: Any, high: Any, most: int | None = None) -> None:
    """Refuse a range of ranks that is empty, or goes beyond the adapter's R."""
    validation.integer("low", low, low=0)
    fix = "" if most is None else f"The adapter has rank {most}."
    validation.integer("high", high, low=0, high=most, fix=fix)
    if high <= low:
        raise ValueError(f"high must be above low = {low}, got {high}.")
