"""Hashes inside compiled programs: of rows of numbers, and of a tree over such hashes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt32

from dflax import counter


def row_hashes(tree: PyTree[Array], salt: int = 0) -> UInt32[Array, " E"]:
    """One hash of 32 bits for each place of the common leading axis, over all leaves.

    The bits of every number are mixed with its place in the row. It tells rows apart that chance or
    faults made; whoever must be kept from forging one needs SHA-256, as in
    `verified_inference.merkle_root`.

    Args:
      tree: leaves `[E, ...]` of 32-bit numbers or bools.
      salt: other salts are other hashes.
    """
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        words = _words(jnp.asarray(leaf))
        place = jnp.arange(words.shape[1], dtype=jnp.uint32)
        keys = counter.mix(place + counter.mix(jnp.uint32(0x9E37 * (number + 1) + salt)))
        total = total + jnp.sum(counter.mix(words ^ keys), axis=1, dtype=jnp.uint32)
    return counter.mix(total)


def root(hashes: UInt32[Array, " E"]) -> UInt32[Array, ""]:
    """The root of the Merkle tree over hashes; a layer of odd length hands its last one on."""
    layer = counter.mix(hashes + jnp.uint32(0x51ED))
    while layer.shape[0] > 1:
        pairs = layer.shape[0] // 2
        above = counter.mix(counter.mix(layer[: 2 * pairs : 2]) + layer[1 : 2 * pairs : 2])
        layer = jnp.concatenate([above, layer[2 * pairs :]])
    return layer[0]


def _words(leaf: Array) -> UInt32[Array, "E w"]:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        leaf = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    return leaf.astype(jnp.uint32).reshape(leaf.shape[0], -1)
