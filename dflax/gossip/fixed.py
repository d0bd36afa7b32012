"""One mixing with a fixed matrix, by the product that suits its structure."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from dflax import validation
from dflax.clients import client_devices
from dflax.gossip.mixer import Known, Mixer, Mixing
from dflax.gossip.products.linear import Plan, Rows, linear, require_topology_sums
from dflax.gossip.products.rolls import roll_rows
from dflax.gossip.products.stored import count_sent, dense_rows, edge_rows, slot_rows
from dflax.programs.exchanges import mean_over, sends, size
from dflax.topology import MixingMatrix, from_edges
from dflax.topology.mixing_matrix import require_matrix


def dense(matrix: MixingMatrix) -> Mixer:
    """`X <- W X` as one product per leaf, at full precision: for small n or many neighbours."""
    require_matrix("matrix", matrix)
    require_topology_sums(matrix.row_stochastic, matrix.graph.name)

    def plan(table: Array, mixing: Mixing) -> tuple[Rows, Array]:
        return dense_rows(table, mixing.active)

    return _of_matrix(matrix, matrix.dense(), plan)


def slots(matrix: MixingMatrix) -> Mixer:
    """`x_i <- w_ii x_i + sum_k w[i, k] x[neighbours[i, k]]`, a sum over the slots of the neighbours.

    Costs one gather of all models per slot, whatever n is: for sparse graphs without structure.
    """
    require_matrix("matrix", matrix)
    require_topology_sums(matrix.row_stochastic, matrix.graph.name)

    def plan(table: tuple[Array, Array], mixing: Mixing) -> tuple[Rows, Array]:
        return slot_rows(*table, mixing.active)

    return _of_matrix(matrix, matrix.slots(), plan)


def edges(matrix: MixingMatrix) -> Mixer:
    """`x_i <- w_ii x_i + sum over edges (j, i) of w_ij x_j`, a segment sum over the edges.

    Costs one row per edge, held at once: for graphs in which few nodes have most of the edges, such
    as stars.
    """
    require_matrix("matrix", matrix)
    require_topology_sums(matrix.row_stochastic, matrix.graph.name)
    graph = matrix.graph

    def plan(table: tuple[Array, Array, Array], mixing: Mixing) -> tuple[Rows, Array]:
        (senders, receivers, weights), active = table, mixing.active
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

    def plan(table: Array, mixing: Mixing) -> tuple[Rows, Array | float]:
        return roll_rows(graph, table, mixing.active)

    return _of_matrix(matrix, weights, plan)


def complete(clients: int, weight: float | None = None) -> Mixer:
    """`W = (1 - n b) I + b 11'`: everyone hears everyone, at the cost of one product per leaf.

    With b = 1/n, the default, every client gets the exact average. With a mask,
    `x_i <- x_i + b sum_j a_j (x_j - x_i)` for active i: absent clients' share stays with the client
    itself, so b = 1/n averages the active clients exactly only when all are.

    Args:
      clients: n >= 1.
      weight: b in (0, 1 / (n - 1)], of every other client; 1 / (n - 1) leaves the client itself out.

    Returns:
      A `Mixer` without tables.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> mixer = dx.gossip.complete(4)
      >>> models = jnp.array([3.0, 0.0, 0.0, 0.0])
      >>> mixing = dx.gossip.Mixing(jax.random.key(0), jnp.int32(0))
      >>> mixed, state, metrics = mixer.apply(models, mixer.init(models), mixing)
      >>> mixed.tolist()
      [0.75, 0.75, 0.75, 0.75]
    """
    validation.integer("clients", clients, low=1)
    share = 1.0 / clients if weight is None else weight
    most = 1.0 / max(clients - 1, 1) * (1 + 1e-9)
    validation.real("weight", share, low=0.0, low_open=True, high=most, scalar=True)

    def plan(table: None, mixing: Mixing) -> tuple[Rows, Array | float]:
        active = mixing.active
        if active is None:
            own: Array | float = 0.0 if weight is None else 1 - clients * share
            sent: Array | float = float(clients * (clients - 1))
        else:
            count = active.sum().astype(jnp.float32)
            own, sent = 1 - count * share, count * (count - 1)

        def rows(x: Array) -> Array:
            shares = jnp.full((clients,), share, x.dtype)
            flat = x.reshape(clients, -1)
            with sends(lambda: mean_over(client_devices(clients), size(x) / clients)):
                heard = jnp.matmul(shares, flat, precision=jax.lax.Precision.HIGHEST)
            heard = heard.reshape(1, *x.shape[1:])
            if active is None and weight is None:
                return jnp.broadcast_to(heard, x.shape)
            return jnp.asarray(own, x.dtype) * x + heard

        return rows, sent

    return linear(clients, None, plan, Known(symmetric=True, doubly_stochastic=True))


def identity(clients: int) -> Mixer:
    """`W = I`: nobody communicates, every client trains alone.

    Raises:
      ValueError: `clients` below 1.
    """
    validation.integer("clients", clients, low=1)

    def plan(table: None, mixing: Mixing) -> tuple[Rows, float]:
        return (lambda x: x), 0.0

    graph = from_edges(clients, np.zeros((0, 2), int), disconnected=True, name="no graph")
    return linear(clients, None, plan, Known(True, True, graph=graph))


def _of_matrix(matrix: MixingMatrix, tables: PyTree[Array], plan: Plan) -> Mixer:
    known = Known(matrix.symmetric, matrix.doubly_stochastic, graph=matrix.graph)
    return linear(matrix.nodes, tables, plan, known)
