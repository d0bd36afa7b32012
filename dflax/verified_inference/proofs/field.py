"""Integers modulo a prime in 32-bit words: no product of 64 bits is ever formed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32

from dflax import validation

MERSENNE = 2**31 - 1
LARGEST_SMALL = 2**16
# Digits of 8 bits are exact even in bfloat16, and a sum of so many products of two is in float32.
DIGIT = 8
BLOCK = 256
FEW = 4
# Products of digits that are held at once.
MOST_PARTS = 1 << 22
# Halves of 16 bits: so many of them add up within 32.
MOST_TERMS = 1 << 16


def require_modulus(modulus: Any) -> int:
    """The modulus, if it is a prime that 32-bit words multiply by: 2^31 - 1, or one below 2^16.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    fix = "Take 2**31 - 1, or a prime below 2^16 to see soundness errors."
    validation.integer("modulus", modulus, low=2, high=MERSENNE, fix=fix)
    modulus = int(modulus)
    small = modulus < LARGEST_SMALL and all(modulus % d for d in range(2, int(modulus**0.5) + 1))
    if not small and modulus != MERSENNE:
        raise ValueError(
            f"modulus must be 2^31 - 1 or a prime below 2^16, got {modulus}. Products of other numbers "
            "do not fit in 32 bits."
        )
    return modulus


def to_field(values: Int[Array, "..."], modulus: int) -> UInt32[Array, "..."]:
    """Signed integers as elements of the field, `x mod p` in [0, p)."""
    values = jnp.asarray(values)
    if values.dtype == jnp.uint32:
        return values % jnp.uint32(modulus)
    return jnp.mod(values.astype(jnp.int32), jnp.int32(modulus)).astype(jnp.uint32)


def uniform(key: Key[Array, ""], shape: tuple[int, ...], modulus: int) -> UInt32[Array, "..."]:
    """Elements drawn uniformly, up to 2^-16 of a small modulus and 2^-31 of the large one."""
    bits = jax.random.bits(key, shape, jnp.uint32)
    if modulus == MERSENNE:
        bits = bits >> 1
    return bits % jnp.uint32(modulus)


def add(a: Array, b: Array, modulus: int) -> UInt32[Array, "..."]:
    """`a + b mod p`."""
    total = a + b
    return jnp.where(total >= modulus, total - jnp.uint32(modulus), total)


def subtract(a: Array, b: Array, modulus: int) -> UInt32[Array, "..."]:
    """`a - b mod p`."""
    return jnp.where(a >= b, a - b, a + jnp.uint32(modulus) - b)


def multiply(a: Array, b: Array, modulus: int) -> UInt32[Array, "..."]:
    """`a b mod p` of elements in [0, p).

    Modulo 2^31 - 1 both factors are cut in halves of 16 bits, and 2^31 = 1:
    `a b = a1 b1 2^32 + (a1 b0 + a0 b1) 2^16 + a0 b0`.
    """
    if modulus != MERSENNE:
        return (a * b) % jnp.uint32(modulus)
    low = jnp.uint32(0xFFFF)
    a1, a0, b1, b0 = a >> 16, a & low, b >> 16, b & low
    middle = a1 * b0 + a0 * b1
    # m 2^16 with m = m1 2^15 + m0 is m1 2^31 + m0 2^16.
    high = (a1 * b1) << 1
    part = (middle >> 15) + ((middle & jnp.uint32(0x7FFF)) << 16)
    last = a0 * b0
    return add(add(high, _folded(part), modulus), _folded(last), modulus)


def _folded(x: Array) -> Array:
    """A word of 32 bits modulo 2^31 - 1."""
    x = (x & jnp.uint32(MERSENNE)) + (x >> 31)
    return jnp.where(x >= MERSENNE, x - jnp.uint32(MERSENNE), x)


def total(values: UInt32[Array, "..."], axis: int, modulus: int) -> UInt32[Array, "..."]:
    """The sum over an axis, mod p."""
    values = jnp.moveaxis(values, axis, -1)
    while values.shape[-1] > MOST_TERMS:
        padding = -values.shape[-1] % MOST_TERMS
        values = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, padding)])
        values = total(values.reshape(*values.shape[:-1], -1, MOST_TERMS), -1, modulus)
    low = jnp.sum(values & jnp.uint32(0xFFFF), axis=-1, dtype=jnp.uint32) % jnp.uint32(modulus)
    high = jnp.sum(values >> 16, axis=-1, dtype=jnp.uint32) % jnp.uint32(modulus)
    return add(low, multiply(high, jnp.uint32(2**16 % modulus), modulus), modulus)


def matmul(a: UInt32[Array, "m n"], b: UInt32[Array, "n k"], modulus: int) -> UInt32[Array, "m k"]:
    """`A B mod p`: floating-point products of 8-bit digits, exact since their sums stay below 2^24.

    A product of p < 2^31 is 16 of digits, so that it runs at a sixteenth of the speed at which the
    machine multiplies float32 matrices, where integers have no such units.
    """
    m, k = a.shape[0], b.shape[1]
    # Few vectors are quicker entry by entry: each entry of the matrix is read once, and in no digits.
    if k <= FEW:
        return jnp.stack([total(multiply(a, v[None], modulus), 1, modulus) for v in b.T], axis=1)
    if m <= FEW:
        return jnp.stack([total(multiply(v[:, None], b, modulus), 0, modulus) for v in a])
    digits = -(-modulus.bit_length() // DIGIT)
    rows = max(1, MOST_PARTS // (digits**2 * k))
    if m <= rows:
        return _some_rows(a, b, modulus)
    chunks = jnp.pad(a, ((0, -m % rows), (0, 0))).reshape(-1, rows, a.shape[1])
    return jax.lax.map(lambda part: _some_rows(part, b, modulus), chunks).reshape(-1, k)[:m]


def _some_rows(a: Array, b: Array, modulus: int) -> UInt32[Array, "m k"]:
    """So many rows that the products of all pairs of digits are held at once."""
    n = a.shape[1]
    if n <= BLOCK:
        return _one_block(a, b, modulus)
    padding = -n % BLOCK
    left = jnp.pad(a, ((0, 0), (0, padding))).reshape(a.shape[0], -1, BLOCK).swapaxes(0, 1)
    right = jnp.pad(b, ((0, padding), (0, 0))).reshape(-1, BLOCK, b.shape[1])

    def another(sum_: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        return add(sum_, _one_block(*block, modulus), modulus), None

    start = jnp.zeros((a.shape[0], b.shape[1]), jnp.uint32)
    return jax.lax.scan(another, start, (left, right))[0]


def _one_block(a: Array, b: Array, modulus: int) -> UInt32[Array, "m k"]:
    digits = -(-modulus.bit_length() // DIGIT)
    left, right = _digits(a, digits), _digits(b, digits)
    parts = jnp.einsum("xmn,ynk->xymk", left, right, preferred_element_type=jnp.float32)
    places = np.array(
        [[pow(2, DIGIT * (x + y), modulus) for y in range(digits)] for x in range(digits)],
        np.uint32,
    )
    reduced = parts.astype(jnp.uint32) % jnp.uint32(modulus)
    weighed = multiply(reduced, jnp.asarray(places)[:, :, None, None], modulus)
    return total(weighed.reshape(-1, *weighed.shape[2:]), 0, modulus)


def _digits(values: Array, count: int) -> Array:
    places = jnp.arange(count, dtype=jnp.uint32).reshape(-1, *(1,) * values.ndim) * DIGIT
    return ((values[None] >> places) & jnp.uint32(2**DIGIT - 1)).astype(jnp.float32)


def power(base: UInt32[Array, "..."], exponent: int, modulus: int) -> UInt32[Array, "..."]:
    """`base^e mod p` by squaring."""
    bits = jnp.asarray([int(bit) for bit in f"{exponent:b}"], bool)

    def square(result: Array, bit: Array) -> tuple[Array, None]:
        result = multiply(result, result, modulus)
        return jnp.where(bit, multiply(result, base, modulus), result), None

    return jax.lax.scan(square, jnp.ones_like(base), bits)[0]


def inverse(values: UInt32[Array, "..."], modulus: int) -> UInt32[Array, "..."]:
    """`1 / x mod p`, by Fermat `x^(p - 2)`; 0 for 0."""
    return power(values, modulus - 2, modulus) if modulus > 2 else values
