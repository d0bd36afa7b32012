"""Inverses of triangular factors by halves: matrix products alone, for many factors at once."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def triangular_inverse(factor: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """L^-1 of a lower triangular L with a positive diagonal.

    Blocks of 1, 2, 4, ... rows are joined in pairs, all pairs of one size in two products:

        [A 0; B D]^-1 = [A^-1 0; -D^-1 B A^-1, D^-1]

    Triangular solves with many right-hand sides, where XLA's CPU backend has them for a batch, take
    10 to 1,000 times as long.
    """
    n = len(factor)
    whole = 1 << (n - 1).bit_length()
    padded = jnp.eye(whole, dtype=factor.dtype).at[:n, :n].set(factor)
    inverse = (1 / jnp.diagonal(padded))[:, None, None]
    size = 1
    while size < whole:
        pairs = jnp.arange(whole // (2 * size))
        below = padded.reshape(len(pairs), 2 * size, len(pairs), 2 * size)[
            pairs, size:, pairs, :size
        ]
        first, second = inverse[0::2], inverse[1::2]
        joined = -_times(second, _times(below, first))
        inverse = jnp.block([[first, jnp.zeros_like(first)], [joined, second]])
        size *= 2
    return inverse[0, :n, :n]


def inverse_of(factor: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """C^-1 = L^-T L^-1 from the lower Cholesky factor L of C."""
    half = triangular_inverse(factor)
    return _times(half.T, half)


def _times(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")
