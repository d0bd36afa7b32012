"""Content ids, and stores that take a block only where its hash fits."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from dflax import validation
from dflax.p2p.hashes import row_hashes


def content_ids(blocks: Int[Array, "B w"]) -> UInt32[Array, "B 2"]:
    """`[B, 2]` uint32, 64 bits of a hash of every block.

    Chance and faults do not make two blocks with one id; who wants to can. `model_blocks` hashes by
    SHA-256.

    Args:
      blocks: `[B, w]` integers of up to 32 bits.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    found = jnp.asarray(validation.array("blocks", blocks, kind="integer", shape=("B", "w")))
    return jnp.stack([row_hashes(found, salt) for salt in (0xB10C, 0xC0DE)], axis=1)


class BlockStore(NamedTuple):
    """What one peer has of a content of B blocks.

    Attributes:
      ids: `[B, 2]` uint32, content ids that are wanted.
      blocks: `[B, w]` int32; zeros where it has none.
      have: `[B]` bools.
      dropped: `[]` int32, blocks that were received and did not fit.
    """

    ids: UInt32[Array, "B 2"]
    blocks: Int[Array, "B w"]
    have: Bool[Array, " B"]
    dropped: Int[Array, ""]


def block_store(ids: UInt32[Array, "B 2"], words: int) -> BlockStore:
    """An empty store for blocks of these ids.

    Args:
      ids: `[B, 2]` uint32, of `content_ids`.
      words: w >= 1, integers in a block.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    found = validation.array("ids", ids, kind="integer", shape=("B", 2))
    if found.dtype != np.uint32:
        raise TypeError(f"ids must be uint32, got {found.dtype}. dflax.p2p.content_ids makes them.")
    validation.integer("words", words, low=1)
    count = found.shape[0]
    return BlockStore(
        jnp.asarray(found),
        jnp.zeros((count, words), jnp.int32),
        jnp.zeros((count,), bool),
        jnp.zeros((), jnp.int32),
    )


def received(store: BlockStore, places: Int[Array, " m"], blocks: Int[Array, "m w"]) -> BlockStore:
    """The store after m blocks came in: those whose hash is their id are kept, the others counted.

    Args:
      store: of `block_store`.
      places: `[m]` which blocks they are said to be, in [0, B).
      blocks: `[m, w]` int32.

    Returns:
      The store; `dropped` has grown by the blocks whose hash does not fit.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("store", store, BlockStore, "dflax.p2p.block_store makes one.")
    count, words = store.blocks.shape
    at = jnp.asarray(
        validation.array("places", places, kind="integer", shape=("m",), low=0, high=count - 1)
    )
    came = jnp.asarray(
        validation.array("blocks", blocks, kind="integer", shape=(at.shape[0], words)), jnp.int32
    )
    fits = jnp.all(content_ids(came) == store.ids[at], axis=1)
    # A block that does not fit goes to a place beyond the store, where it is dropped.
    to = jnp.where(fits, at, count)
    return store._replace(
        blocks=store.blocks.at[to].set(came, mode="drop"),
        have=store.have.at[to].set(True, mode="drop"),
        dropped=store.dropped + jnp.sum(~fits, dtype=jnp.int32),
    )
