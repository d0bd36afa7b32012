"""Compression of matrices to low rank, by one power iteration a round (PowerSGD)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.channel.channel import Channel, Messages
from dflax.channel.compression import compression


def powersgd(rank: int) -> Channel:
    """Sends every matrix as a product of two thin ones (PowerSGD), vectors and scalars as they are.

    A leaf of two or more axes is read as a matrix M `[a, b]`, b its last axis. With the sender's Q
    `[b, r]` of its last message (at first a fixed random one):

        P = orthonormal basis of the columns of M Q
        Q = M^T P
        C(M) = P Q^T

    C(M) is a projection of M, so |M - C(M)| <= |M|; wrap it in `error_feedback`. Encoded as the
    r (a + b) numbers of P and Q in 32 bits; a matrix that they would not make smaller is sent whole.

    Each sender has a basis of its own, so a message goes one way once. (Workers that can afford two
    exchanges a round share P, as in the paper.)

    Args:
      rank: r >= 1.

    References:
      Vogels, Karimireddy and Jaggi, PowerSGD, arXiv 1905.13727.
    """
    validation.integer("rank", rank, low=1)

    def init(message: Messages) -> PyTree[Array]:
        leaves = jax.tree.leaves(message)
        keys = jax.random.split(jax.random.key(0), max(len(leaves), 1))
        bases = [
            jax.random.normal(key, (leaf.shape[-1], rank), leaf.dtype) if _thin(leaf, rank) else ()
            for key, leaf in zip(keys, leaves, strict=False)
        ]
        return tuple(bases)

    def compress(
        message: Messages, state: PyTree[Array], key: Key[Array, ""]
    ) -> tuple[Messages, PyTree[Array]]:
        leaves, structure = jax.tree.flatten(message)
        sent, bases = [], []
        for leaf, basis in zip(leaves, state, strict=True):
            if _thin(leaf, rank):
                leaf, basis = _power_iteration(leaf, basis)
            sent.append(leaf)
            bases.append(basis)
        return jax.tree.unflatten(structure, sent), tuple(bases)

    def bits(message: Messages) -> int:
        return 32 * sum(
            rank * sum(_sides(leaf)) if _thin(leaf, rank) else math.prod(leaf.shape)
            for leaf in jax.tree.leaves(message)
        )

    return compression(compress, bits, init)


def _sides(leaf: Any) -> tuple[int, int]:
    return math.prod(leaf.shape[:-1]), leaf.shape[-1]


def _thin(leaf: Any, rank: int) -> bool:
    """Whether two factors of this rank are smaller than the leaf itself."""
    return len(leaf.shape) >= 2 and rank * sum(_sides(leaf)) < math.prod(leaf.shape)


def _power_iteration(
    leaf: Float[Array, "..."], basis: Float[Array, "b r"]
) -> tuple[Float[Array, "..."], Float[Array, "b r"]]:
    matrix = leaf.reshape(_sides(leaf))
    columns, _ = jnp.linalg.qr(matrix @ basis)
    rows = matrix.T @ columns
    return (columns @ rows.T).reshape(leaf.shape), rows
