"""Freivalds' check of a matrix product by random vectors."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.verified_inference.proofs.field import MERSENNE, matmul, to_field, uniform
from dflax.verified_inference.proofs.products import in_range, require_product


def freivalds(
    key: Key[Array, ""],
    a: Int[AnyArray, "m n"],
    b: Int[AnyArray, "n k"],
    c: Int[AnyArray, "m k"],
    *,
    trials: int = 1,
    modulus: int = MERSENNE,
    binary: bool = False,
) -> Bool[Array, ""]:
    """Whether `A B = C` as far as random vectors r tell: accepts iff `A (B r) = C r mod p` for each.

    A right product is always accepted. A wrong one is accepted with probability at most `p^-t` in t
    trials, and `2^-t` with vectors of zeros and ones. An entry of C beyond p / 2 is refused as it is:
    C and C + p have the same residues. The work is that of 3 t products of a matrix and a vector. The
    vectors must be unknown to whoever claims C.

    Args:
      key: of the vectors.
      a: `[m, n]` integers of 32 bits at most.
      b: `[n, k]`; `2 n max|A| max|B|` must be below the modulus.
      c: `[m, k]`, the claim.
      trials: t >= 1.
      modulus: p, 2^31 - 1 or a prime below 2^16.
      binary: whether the vectors are of zeros and ones.

    Returns:
      `[]` whether the claim is accepted.

    Raises:
      TypeError, ValueError: naming the argument; a modulus too small for the product, with the bits
        that are needed.

    References:
      Freivalds, Probabilistic machines can use less running time, IFIP 1977.
    """
    validation.typed_key("key", key)
    validation.integer("trials", trials, low=1)
    validation.flag("binary", binary)
    a, b, c, modulus = require_product(a, b, c, modulus)
    return _accepted(key, a, b, c, int(trials), modulus, bool(binary))


@functools.partial(jax.jit, static_argnames=("trials", "modulus", "binary"))
def _accepted(
    key: Array, a: Array, b: Array, c: Array, trials: int, modulus: int, binary: bool
) -> Bool[Array, ""]:
    shape = (b.shape[1], trials)
    if binary:
        vectors = jax.random.bernoulli(key, 0.5, shape).astype(jnp.uint32)
    else:
        vectors = uniform(key, shape, modulus)
    first, second, claim = (to_field(one, modulus) for one in (a, b, c))
    through = matmul(first, matmul(second, vectors, modulus), modulus)
    return in_range(c, modulus) & jnp.all(through == matmul(claim, vectors, modulus))
