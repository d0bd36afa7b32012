"""Real numbers as integers modulo a power of two, whose sums are exact."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from dflax import validation

WORD = 32


class FixedPoint(NamedTuple):
    """Fixed-point numbers in `[-bound, bound]`, in steps of `2^-scale_bits`, modulo `2^modulus_bits`.

        k = round(x 2^s) mod 2^m,       x cut to [-B, B] first

    The sum of n of them modulo 2^m is their sum as integers, as long as n round(B 2^s) < 2^(m - 1).
    Made by `fixed_point`, which makes sure of that.

    Attributes:
      scale_bits: s.
      modulus_bits: m.
      bound: B.
    """

    scale_bits: int
    modulus_bits: int
    bound: float

    def encode(self, numbers: Float[Array, "..."]) -> UInt32[Array, "..."]:
        """The integers of numbers, rounded to the nearest, ties to the even one; `[...]` uint32."""
        wide = numbers.astype(jnp.promote_types(numbers.dtype, jnp.float32))
        cut = jnp.clip(wide, -self.bound, self.bound)
        whole = jnp.round(cut * jnp.asarray(2.0**self.scale_bits, wide.dtype)).astype(jnp.int32)
        return self.wrapped(jax.lax.bitcast_convert_type(whole, jnp.uint32))

    def wrapped(self, words: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
        """32-bit words modulo 2^m: what was added modulo 2^32 is right modulo 2^m too."""
        return words & jnp.uint32((1 << self.modulus_bits) - 1)

    def decode(self, total: UInt32[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
        """The real number of a sum modulo 2^m, read as an integer in [-2^(m - 1), 2^(m - 1))."""
        empty = WORD - self.modulus_bits
        signed = jax.lax.bitcast_convert_type(total << empty, jnp.int32) >> empty
        wide = signed.astype(jnp.promote_types(dtype, jnp.float32))
        return (wide * jnp.asarray(2.0**-self.scale_bits, wide.dtype)).astype(dtype)

    def outside(self, numbers: Float[Array, "..."]) -> Float[Array, ""]:
        """How many numbers the encoding cuts, float32."""
        return jnp.sum(jnp.abs(numbers) > self.bound).astype(jnp.float32)


def fixed_point(
    addends: int, *, bound: float, scale_bits: int = 16, modulus_bits: int = 32
) -> FixedPoint:
    """The encoding of numbers of which so many are added, refused where the sum could wrap around.

    Args:
      addends: n >= 1, how many are added at most.
      bound: B > 0, known when the program is traced; numbers beyond it are cut.
      scale_bits: s in [0, 30], so that rounding moves a number by 2^-(s + 1) at most.
      modulus_bits: m in [2, 32].

    Raises:
      TypeError, ValueError: naming the argument; with the bits that are needed where m is too small.
    """
    validation.integer("addends", addends, low=1)
    if validation.is_traced(bound):
        raise TypeError(
            "bound must be a number that is known when the program is traced, since the modulus "
            "depends on it, got a traced value."
        )
    validation.real("bound", bound, low=0.0, low_open=True, scalar=True)
    validation.integer("scale_bits", scale_bits, low=0, high=30)
    validation.integer("modulus_bits", modulus_bits, low=2, high=WORD)
    largest = math.floor(float(bound) * 2.0**scale_bits + 0.5)
    needed = (int(addends) * largest).bit_length() + 1
    if needed > modulus_bits:
        fix = "Take more bits, fewer scale_bits or a smaller bound."
        if needed > WORD:
            fix = f"There are at most {WORD}: take fewer scale_bits or a smaller bound."
        raise ValueError(
            f"modulus_bits must be at least {needed}, so that the sum of {addends} numbers of up to "
            f"{float(bound):g} in steps of 2^-{scale_bits} does not wrap around, got {modulus_bits}. "
            f"{fix}"
        )
    return FixedPoint(int(scale_bits), int(modulus_bits), float(bound))
