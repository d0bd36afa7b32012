"""One mixing with a fixed matrix, by the product that suits its structure."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from dflax import validation
from dflax.clients import client_devices
from dflax.gossip.linear import Plan, Rows, along, linear, require_topology_sums
from dflax.gossip.mixer import Mixer
from dflax.gossip.products import count_sent, dense_rows, edge_rows, slot_rows
from dflax.topology import MixingMatrix, from_edges
from dflax.topology.mixing_matrix import require_matrix


def dense(matrix: MixingMatrix) -> Mixer:
    """`X <- W X` as one product per leaf, at full precision: for small n or many neighbours."""
    require_matrix("matrix", matrix)
    require_topology_sums(matrix.row_stochastic, matrix.graph.name)

    def plan(table: Array, key: Array, index: Array, active: Array | None) -> tuple[Rows, Array]:
        return dense_rows(table, active)

    return _of_matrix(matrix, matrix.dense(), plan)


def slots(matrix: MixingMatrix) -> Mixer:
    """`x_i <- w_ii x_i + sum_k w[i, k] x[neighbours[i, k]]`, a sum over the slots of the neighbours.

    Costs one gather of all models per slot, whatever n is: for sparse graphs without structure.
    """
    require_matrix("matrix", matrix)
    require_topology_sums(matrix.row_stochastic, matrix.graph.name)

    def plan(
        table: tuple[Array, Array], key: Array, index: Array, active: Array | None
    ) -> tuple[Rows, Array]:
        return slot_rows(*table, active)

    return _of_matrix(matrix, matrix.slots(), plan)


def edges(matrix: MixingMatrix) -> Mixer:
    """`x_i <- w_ii x_i + sum over edges (j, i) of w_ij x_j`, a segment sum over the edges.

    Costs one row per edge, held at once: for graphs in which few nodes have most of the edges, such
    as stars.
    """
    require_matrix("matrix", matrix)
    require_topology_sums(matrix.row_stochastic, matrix.graph.name)
    graph = matrix.graph

    def plan(
        table: tuple[Array, Array, Array], key: Array, index: Array, active: Array | None
    ) -> tuple[Rows, Array]:
        senders, receivers, weights = table
        if active is not None:
            weights = jnp.where(active[senders] & active[receivers], weights, 0)
        given = jax.ops.segment_sum(weights, receivers, matrix.nodes, indices_are_sorted=True)
        return edge_rows(senders, receivers, weights, 1 - given), count_sent(weights)

    return _of_matrix(matrix, (graph.senders, graph.receivers, matrix.weights), plan)


def shifts(matrix: MixingMatrix) -> Mixer:
    """`X <- w_0 X + sum_s w_s roll(X, s)` on the periodic grid of the nodes.

    For rings, tori, hypercubes and circulant graphs. When clients are sharded over devices, each
    roll exchanges the boundary rows alone (a collective permute). Least is sent where a device has
    whole rows of the grid, or each row lies on whole devices.

    Raises:
      ValueError: a graph that is not one of shifts, or weights that vary over the nodes.
    """
    require_matrix("matrix", matrix)
    require_topology_sums(matrix.row_stochastic, matrix.graph.name)
    weights, graph = matrix.shift_weights, matrix.graph
    if weights is None or graph.shape is None or graph.shifts is None:
        raise ValueError(
            f"topology must be a graph of shifts with the same weights at every node to mix by rolls, "
            f"got {graph.name}. Use kind='slots' or kind='dense'."
        )
    sides, moves = graph.shape, graph.shifts

    def plan(
        table: Array, key: Array, index: Array, active: Array | None
    ) -> tuple[Rows, Array | float]:
        blocks = _are_blocks(sides, client_devices(matrix.nodes))
        shape, roll = (sides, _roll) if blocks else ((matrix.nodes,), partial(_roll_flat, sides))
        if active is None:
            own: Array = table[0]
            heard: list[Array] = [table[1 + o] for o in range(len(moves))]
            sent: Array | float = float(matrix.nodes * np.count_nonzero(weights[1:]))
        else:
            grid = active.reshape(shape)
            heard = [jnp.where(grid & roll(grid, s), table[1 + o], 0) for o, s in enumerate(moves)]
            own = 1 - sum(heard, jnp.zeros(shape, table.dtype))
            sent = sum((count_sent(weight) for weight in heard), jnp.float32(0))

        def rows(x: Array) -> Array:
            grid = x.reshape(*shape, *x.shape[1:])
            spread = (...,) + (None,) * (x.ndim - 1)
            total = own.astype(x.dtype)[spread] * grid
            for move, weight in zip(moves, heard, strict=True):
                total = total + weight.astype(x.dtype)[spread] * roll(grid, move)
            return total.reshape(x.shape)

        return rows, sent

    return _of_matrix(matrix, weights, plan)


def complete(clients: int) -> Mixer:
    """`W = 11' / n`: every client gets the exact average, at the cost of one product per leaf.

    With a mask, `x_i <- x_i + (1/n) sum_j a_j (x_j - x_i)` for active i: absent clients' share stays
    with the client itself, so this averages the active clients exactly only when all are.

    Args:
      clients: n >= 1.

    Returns:
      A `Mixer` without tables.

    Raises:
      ValueError: `clients` below 1.
    """
    validation.integer("clients", clients, low=1)

    def plan(
        table: None, key: Array, index: Array, active: Array | None
    ) -> tuple[Rows, Array | float]:
        if active is None:
            own: Array | float = 0.0
            sent: Array | float = float(clients * (clients - 1))
        else:
            count = active.sum().astype(jnp.float32)
            own, sent = 1 - count / clients, count * (count - 1)

        def rows(x: Array) -> Array:
            share = jnp.full((clients,), 1.0 / clients, x.dtype)
            mean = jnp.matmul(share, x.reshape(clients, -1), precision=jax.lax.Precision.HIGHEST)
            mean = mean.reshape(1, *x.shape[1:])
            if active is None:
                return jnp.broadcast_to(mean, x.shape)
            return jnp.asarray(own, x.dtype) * x + mean

        return rows, sent

    return linear(clients, None, plan, symmetric=True, doubly_stochastic=True)


def identity(clients: int) -> Mixer:
    """`W = I`: nobody communicates, every client trains alone.

    Raises:
      ValueError: `clients` below 1.
    """
    validation.integer("clients", clients, low=1)

    def plan(table: None, key: Array, index: Array, active: Array | None) -> tuple[Rows, float]:
        return (lambda x: x), 0.0

    graph = from_edges(clients, np.zeros((0, 2), int), disconnected=True, name="no graph")
    return linear(clients, None, plan, symmetric=True, doubly_stochastic=True, graph=graph)


def _of_matrix(matrix: MixingMatrix, tables: PyTree[Array], plan: Plan) -> Mixer:
    return linear(
        matrix.nodes,
        tables,
        plan,
        symmetric=matrix.symmetric,
        doubly_stochastic=matrix.doubly_stochastic,
        graph=matrix.graph,
    )


def _roll(grid: Array, move: tuple[int, ...]) -> Array:
    axes = tuple(axis for axis, step in enumerate(move) if step)
    return jnp.roll(grid, tuple(move[axis] for axis in axes), axes)


def _roll_flat(sides: tuple[int, ...], x: Array, move: tuple[int, ...]) -> Array:
    """`_roll` on the nodes in a row: two rolls for an axis, of those that wrap around and the others."""
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
            inside = jnp.where(along(stays, x), inside, wrapped)
        x = inside
    return x


def _are_blocks(sides: tuple[int, ...], devices: int) -> bool:
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
