"""Claims that a matrix is the product of two others, and what they have to be to be checked."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.verified_inference.proofs.field import MERSENNE, matmul, require_modulus, to_field

FIX = "Quantise them first, see dflax.verified_inference.quantise."


def require_product(a: Any, b: Any, c: Any, modulus: Any) -> tuple[Array, Array, Array, int]:
    """The three matrices and the modulus, refused where a claim modulo p would not be one of integers.

    Modulo p no two integers of size below p / 2 are the same, so `n max|A| max|B|` must be below p / 2.
    What is traced passes unseen.

    Raises:
      TypeError, ValueError: naming the argument, with the bits that are needed.
    """
    modulus = require_modulus(modulus)
    first, second = require_factors(a, b, modulus)
    shape = (first.shape[0], second.shape[1])
    given = validation.array("c", c, kind="integer", shape=shape, fix=FIX)
    _require_32_bits("c", given)
    return first, second, jnp.asarray(given), modulus


def require_factors(a: Any, b: Any, modulus: int) -> tuple[Array, Array]:
    """Two integer matrices whose product the modulus tells from others."""
    first = validation.array("a", a, kind="integer", shape=("m", "n"), fix=FIX)
    second = validation.array("b", b, kind="integer", shape=(first.shape[1], "k"), fix=FIX)
    _require_32_bits("a", first)
    _require_32_bits("b", second)
    if not (validation.is_traced(first) or validation.is_traced(second)):
        bound = first.shape[1] * _largest(first) * _largest(second)
        if 2 * bound >= modulus:
            raise ValueError(
                f"modulus must be above 2 n max|a| max|b| = {2 * bound}, {(2 * bound).bit_length()} "
                f"bits, got {modulus}. Use a larger one, or fewer bits in a and b."
            )
    return jnp.asarray(first), jnp.asarray(second)


def in_range(c: Int[AnyArray, "..."], modulus: int) -> Bool[Array, ""]:
    """Whether all entries are below p / 2: another integer of the same residue is no answer."""
    half = jnp.asarray((modulus - 1) // 2, c.dtype)
    inside = c <= half
    return jnp.all(
        inside if jnp.issubdtype(c.dtype, jnp.unsignedinteger) else inside & (c >= -half)
    )


def modular_product(
    a: Int[AnyArray, "m n"], b: Int[AnyArray, "n k"], *, modulus: int = MERSENNE
) -> Int[Array, "m k"]:
    """`A B` of integer matrices, exact, computed modulo a prime.

    Args:
      a: `[m, n]` integers of 32 bits at most.
      b: `[n, k]`; `2 n max|A| max|B|` must be below the modulus.
      modulus: 2^31 - 1, or a prime below 2^16.

    Returns:
      `[m, k]` int32.

    Raises:
      TypeError, ValueError: naming the argument; a modulus too small for the product, with the bits
        that are needed.
    """
    modulus = require_modulus(modulus)
    a, b = require_factors(a, b, modulus)
    return _signed(a, b, modulus)


@functools.partial(jax.jit, static_argnames="modulus")
def _signed(a: Array, b: Array, modulus: int) -> Int[Array, "m k"]:
    product = matmul(to_field(a, modulus), to_field(b, modulus), modulus).astype(jnp.int32)
    return jnp.where(product > (modulus - 1) // 2, product - jnp.int32(modulus), product)


def _largest(values: np.ndarray) -> int:
    return max(abs(int(values.max())), abs(int(values.min())))


def _require_32_bits(name: str, values: Any) -> None:
    if validation.is_traced(values):
        return
    if int(values.min()) < -(2**31) or int(values.max()) >= 2**32:
        raise ValueError(
            f"{name} must hold integers of 32 bits, got {values.min()} to {values.max()}. {FIX}"
        )
