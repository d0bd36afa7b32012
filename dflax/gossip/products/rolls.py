"""Products with the mixing matrix of a graph of shifts, as rolls of all clients' rows."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from dflax.clients import CLIENTS, against, client_devices
from dflax.gossip.products.linear import Rows
from dflax.gossip.products.stored import count_sent
from dflax.programs.exchanges import sends, size
from dflax.topology import Graph


def roll_rows(
    graph: Graph,
    weights: Float[Array, " k+1"],
    active: Bool[Array, " n"] | None,
    *,
    returned: bool = False,
) -> tuple[Rows, Float[Array, ""]]:
    """Multiplication by `w_0 I + sum_s w_s S_s`, S_s the shift by s, masked, and the models it sends.

    Args:
      graph: with shifts.
      weights: `[k+1]`, the own weight and that of each of the k shifts; they sum to 1.
      active: `[n]`, the mask; None for everyone.
      returned: who keeps an edge's weight when one of its ends is absent. False: the receiver adds it to
        its own weight, so that rows sum to 1. True: the sender does, so that columns sum to 1.

    Returns:
      `x -> W x`, and how many models travel.
    """
    sides, moves = graph.shape or (), graph.shifts or ()
    devices = client_devices(graph.nodes)
    shape: tuple[int, ...] = (graph.nodes,)
    move_by: Callable[[Array, tuple[int, ...]], Array] = partial(roll_flat, sides)
    if len(sides) > 1 and devices == graph.nodes:
        move_by = partial(roll_devices, sides)
    elif are_blocks(sides, devices):
        shape, move_by = sides, roll
    heard: list[Array] = [weights[1 + o] for o in range(len(moves))]
    if active is None:
        own: Array = weights[0]
        sent = graph.nodes * count_sent(weights[1:])
    else:
        grid = active.reshape(shape)
        heard = [
            jnp.where(grid & move_by(grid, s), w, 0) for w, s in zip(heard, moves, strict=True)
        ]
        sent = sum((count_sent(weight) for weight in heard), jnp.float32(0))
        kept = heard
        if returned:
            back = [tuple(-step for step in move) for move in moves]
            kept = [move_by(weight, s) for weight, s in zip(heard, back, strict=True)]
        own = 1 - sum(kept, jnp.zeros(shape, weights.dtype))

    def rows(x: Array) -> Array:
        grid = x.reshape(*shape, *x.shape[1:])
        spread = (...,) + (None,) * (x.ndim - 1)
        total = own.astype(x.dtype)[spread] * grid
        with sends(lambda: bytes_that_leave(graph, x)):
            for move, weight in zip(moves, heard, strict=True):
                total = total + weight.astype(x.dtype)[spread] * move_by(grid, move)
        return total.reshape(x.shape)

    return rows, sent


def roll(grid: Array, move: tuple[int, ...]) -> Array:
    """Point p moves to p + move, modulo the sides of the grid."""
    axes = tuple(axis for axis, step in enumerate(move) if step)
    return jnp.roll(grid, tuple(move[axis] for axis in axes), axes)


def roll_flat(sides: tuple[int, ...], x: Array, move: tuple[int, ...]) -> Array:
    """`roll` on the nodes in a row: two rolls for an axis, of those that wrap around and the others."""
    nodes = x.shape[0]
    for axis, step in enumerate(move):
        side, stride = sides[axis], math.prod(sides[axis + 1 :])
        step %= side
        # The direction that crosses the grid's edge for fewer nodes.
        step = step - side if 2 * step > side else step
        if not step:
            continue
        inside = jnp.roll(x, step * stride, 0)
        if axis:
            wrapped = jnp.roll(x, (step - side if step > 0 else step + side) * stride, 0)
            place = jnp.arange(nodes) // stride % side
            stays = place >= step if step > 0 else place < side + step
            inside = jnp.where(against(stays, x), inside, wrapped)
        x = inside
    return x


def roll_devices(sides: tuple[int, ...], x: Array, move: tuple[int, ...]) -> Array:
    """`roll` on the nodes in a row, one to a device: a permutation of the devices."""
    nodes = np.arange(x.shape[0]).reshape(sides)
    moved = np.roll(nodes, move, range(len(sides))).reshape(-1)
    pairs = [(int(sender), place) for place, sender in enumerate(moved)]
    return jax.shard_map(
        lambda row: jax.lax.ppermute(row, CLIENTS, pairs),
        in_specs=PartitionSpec(CLIENTS),
        out_specs=PartitionSpec(CLIENTS),
        axis_names={CLIENTS},
        check_vma=False,
    )(x)


def bytes_that_leave(graph: Graph, x: Array) -> float:
    """Bytes of the rows `[n, ...]` that one device has to send for a mixing on a graph."""
    devices = client_devices(graph.nodes)
    return rows_that_leave(graph, devices) * size(x) / graph.nodes if devices > 1 else 0.0


def rows_that_leave(graph: Graph, devices: int) -> int:
    """The most rows that one device has to send, each once to every other device that needs it.

    Node i lives on device `i // (n / devices)`; `devices` divides n.
    """
    owner = np.arange(graph.nodes) // (graph.nodes // devices)
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    leaves = owner[senders] != owner[receivers]
    pairs = np.unique(np.stack([senders[leaves], owner[receivers[leaves]]]), axis=1)
    return int(np.bincount(owner[pairs[0]], minlength=devices).max())


def are_blocks(sides: tuple[int, ...], devices: int) -> bool:
    """Whether the nodes of a device, which follow each other, are a block of the grid.

    Where they are not, XLA would bring all nodes of several devices to each of them to reshape.
    """
    own = math.prod(sides) // devices
    strides = [math.prod(sides[axis + 1 :]) for axis in range(len(sides))]
    return any(
        own % stride == 0 and side % (own // stride) == 0
        for side, stride in zip(sides, strides, strict=True)
        if stride <= own
    )
