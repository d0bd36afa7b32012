"""What all linear mixers share: one plan per mixing, the same for every leaf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from dflax import validation
from dflax.algorithm import Metrics
from dflax.clients import (
    against,
    client_devices,
    model_devices,
    platform,
    shared_axis,
    with_their_clients,
)
from dflax.gossip.mixer import Known, Mixer, MixerState, Mixing, Models
from dflax.programs.in_place import blocks_in_place

# A device's part of a leaf is mixed in blocks of so many bytes, if it is two of them or more.
BLOCK, MOST_BLOCKS = 8 << 20, 16
# A TPU's tiles, to which it would fill up narrower blocks, of the last axis and the one before.
TILES = {-1: 128, -2: 16}
Rows = Callable[[Float[Array, "n ..."]], Float[Array, "n ..."]]
Plan = Callable[[Any, Mixing], tuple[Rows, Float[Array, ""] | float]]


def linear(
    clients: int,
    tables: PyTree[Array],
    plan: Plan,
    known: Known,
) -> Mixer:
    """A mixer `X <- W X` from a way of multiplying by W.

    Leaves are mixed in float32, or in their own precision where that is higher, and come back in
    their own dtype. Rows of inactive clients never enter a sum, not even at weight 0, so that their
    NaNs do not spread; they come back bit for bit.

    Args:
      clients: n.
      tables: pytree of arrays that the plan reads; `init` moves them to the device, into the state.
      plan: `plan(tables, mixing) -> (rows, models_sent)`, where `rows(x)` is `W x` for an array
        `[n, ...]`. `mixing.active` is None or boolean here. With a mask, W is the masked one,
        `w_ij a_i a_j` off the diagonal and what is left of each row on it.
      known: what is known of W, see `Known`; that the mixer is linear goes without saying.

    Returns:
      The `Mixer`; its state is the tables.
    """

    def init(models: Models) -> MixerState:
        require_models(models, clients)
        return jax.tree.map(jnp.asarray, tables)

    def apply(
        models: Models, state: MixerState, mixing: Mixing
    ) -> tuple[Models, MixerState, Metrics]:
        require_models(models, clients)
        mask = as_mask(mixing.active, clients)
        rows, sent = plan(state, mixing._replace(active=mask))
        mixed = jax.tree.map(lambda leaf: mix_leaf(rows, leaf, mask), models)
        return mixed, state, {"models_sent": jnp.asarray(sent, jnp.float32)}

    return Mixer(clients, init, apply, known._replace(linear=True))


def mix_leaf(rows: Rows, leaf: Array, mask: Bool[Array, " n"] | None) -> Array:
    """`rows(leaf)` in at least float32 and back, keeping the rows of inactive clients.

    On accelerators a large leaf is mixed a block of its coordinates at a time, in its own place.
    """
    leaf = jnp.asarray(leaf)

    def mixed(leaf: Array) -> Array:
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        if mask is None:
            return rows(wide).astype(leaf.dtype)
        takes_part = against(mask, leaf)
        mixed = rows(jnp.where(takes_part, wide, 0)).astype(leaf.dtype)
        return jnp.where(takes_part, mixed, leaf)

    cut = None if platform() == "cpu" else axis_to_cut(leaf)
    if cut is None:
        return mixed(leaf)
    # The compiler would deal what is left at the end by coordinates.
    return blocks_in_place(
        lambda part: with_their_clients(mixed(with_their_clients(part))), leaf, *cut
    )


def axis_to_cut(leaf: Array) -> tuple[int, int] | None:
    """The axis of `[n, ...]` along which a large leaf is cut, and the width of a block; None: whole.

    The one that gives the most blocks of whole tiles. Devices that share models split none of it.
    """
    devices, sharing = client_devices(leaf.shape[0]), model_devices()
    most = min(MOST_BLOCKS, leaf.size * leaf.dtype.itemsize // (devices * sharing * BLOCK))
    shared = shared_axis(leaf.shape[1:], sharing)
    axes = [axis for axis in range(1, leaf.ndim) if axis - 1 != shared]
    tiles = {axis: TILES.get(axis - leaf.ndim, 1) for axis in axes}
    blocks = {axis: min(most, leaf.shape[axis] // tile) for axis, tile in tiles.items()}
    best = max(blocks, key=lambda axis: blocks[axis], default=0)
    if blocks.get(best, 0) < 2:
        return None
    return best, -(-leaf.shape[best] // (blocks[best] * tiles[best])) * tiles[best]


def as_mask(active: Array | None, clients: int) -> Bool[Array, " n"] | None:
    """The mask of active clients as booleans: a client is active where `active > 0`.

    Raises:
      ValueError: a mask that does not have shape `[n]`.
    """
    if active is None:
        return None
    if jnp.shape(active) != (clients,):
        raise ValueError(
            f"active must be a mask of shape ({clients},), got {jnp.shape(active)}. It has one entry "
            "per client of the mixer."
        )
    return jnp.asarray(active) > 0


def require_models(models: Models, clients: int) -> None:
    """Refuse models that are not real numbers with one row per client.

    Raises:
      TypeError: a leaf that does not hold real floating-point numbers.
      ValueError: a leaf without rows, or with a number of rows other than n.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(models):
        dtype = jax.dtypes.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"models{jax.tree_util.keystr(path)} must hold real numbers, got {dtype}. Of counters, "
                "masks and keys there is no mean: keep them out of what is mixed (in an algorithm, out "
                "of its message)."
            )
    validation.leading_axis("models", models, clients)


def require_topology_sums(sums_to_one: bool, name: str) -> None:
    """Refuse a matrix whose rows do not sum to 1 where agreement must be kept."""
    if not sums_to_one:
        raise ValueError(
            f"topology must have rows that sum to 1, got weights on {name} whose rows do not. Use "
            "metropolis or uniform weights; for column-stochastic ones use gossip.push_sum."
        )
