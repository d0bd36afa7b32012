"""Integers in the order of real numbers, so that comparing them costs one instruction."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

KINDS = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}


def to_keys(values: Float[Array, "..."]) -> Int[Array, "..."]:
    """Keys with `key(a) < key(b)` where a < b: -inf < ... < -0 < +0 < ... < inf < NaN.

    A number's bits, read as an integer, are in order for positive numbers and in reverse for negative
    ones. A minimum of floats has to pass NaNs on, which takes several instructions where that of
    integers takes one. Every NaN, of either sign, gets the same key, above that of +inf.

    Args:
      values: of any floating-point dtype of 2, 4 or 8 bytes.

    Returns:
      Signed integers of the same width.
    """
    values = jnp.where(jnp.isnan(values), jnp.full((), jnp.nan, values.dtype), values)
    return _flip(jax.lax.bitcast_convert_type(values, KINDS[values.dtype.itemsize]))


def from_keys(keys: Int[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
    """The numbers that have these keys; the largest and the smallest integer give NaN."""
    return jax.lax.bitcast_convert_type(_flip(keys), dtype)


def extremes(dtype: jnp.dtype) -> tuple[int, int]:
    """Keys below and above those of all numbers and NaNs of a dtype."""
    bounds = jnp.iinfo(KINDS[jnp.dtype(dtype).itemsize])
    return int(bounds.min), int(bounds.max)


def _flip(bits: Int[Array, "..."]) -> Int[Array, "..."]:
    """Its own inverse: all bits but the sign are turned over where the sign is set."""
    bounds = jnp.iinfo(bits.dtype)
    sign = jax.lax.shift_right_arithmetic(bits, jnp.full_like(bits, bounds.bits - 1))
    return bits ^ (sign & bounds.max)
