"""A threshold found bit by bit, in as many passes as an integer has bits: nothing is sorted."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def last_where(
    holds: Callable[[Int[Array, "..."]], Bool[Array, "..."]],
    dtype: jnp.dtype,
    shape: tuple[int, ...] = (),
    bits: int | None = None,
) -> Int[Array, "..."]:
    """The largest integer at which a condition holds that holds up to some integer and not beyond.

    Args:
      holds: `trial -> whether`, for `[...]` trials at a time, each for itself.
      dtype: of the integers, signed or not.
      shape: `[...]`, how many thresholds are looked for.
      bits: of the answer, where it is known to be shorter than the dtype; of unsigned ones alone.

    Returns:
      `[...]`; the least integer of the dtype where the condition holds nowhere.
    """
    info = jnp.iinfo(dtype)
    length = info.bits if bits is None else bits

    def narrow(number: Array, found: Array) -> Array:
        # Counted from the least integer on, a bit that is not set yet is set by turning it over.
        place = jnp.asarray(length - 1 - number, dtype)
        trial = found ^ jnp.left_shift(jnp.ones((), dtype), place)
        return jnp.where(holds(trial), trial, found)

    return jax.lax.fori_loop(0, length, narrow, jnp.full(shape, info.min, dtype))
