"""Exact averaging over directed graphs by push-sum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.algorithm import Metrics
from dflax.clients import against, everywhere
from dflax.gossip.choose import fits_rolls, fits_slots
from dflax.gossip.mixer import Known, Mixer, Mixing, Models, PerClient, in_models
from dflax.gossip.products.linear import Rows, as_mask, mix_leaf, require_models
from dflax.gossip.products.rolls import roll_rows
from dflax.gossip.products.stored import count_sent, edge_rows, slot_rows
from dflax.gossip.repeat import repeat
from dflax.topology import Graph, MixingMatrix, column_stochastic
from dflax.topology.graph import require_connected_together


class PushSumState(NamedTuple):
    """What push-sum carries between mixings.

    Attributes:
      tables: the column-stochastic matrix A: on a graph of shifts its weights `[k+1]`, the own first;
        else its diagonal `[n]`, and its neighbours and weights `[n, k]` or its senders, receivers and
        weights `[E]`.
      weights: `[n]` push-sum weights w, > 0, that always sum to n.
      excess: rows `[n, ...]`, the numerators less the models, `x - z`, in float32 or wider, so that what
        rounding a narrow model loses is not lost to the sum.
    """

    tables: tuple[Array, ...]
    weights: Float[Array, " n"]
    excess: PerClient


def push_sum(
    topology: Graph | MixingMatrix, *, steps: int = 1, disconnected: bool = False
) -> Mixer:
    """Push-sum: `x <- A x`, `w <- A w`, `z = x / w`, with a column-stochastic A.

    On a directed graph that is not regular no local choice of weights is doubly stochastic, and
    plain mixing averages with the wrong weights. Push-sum keeps `sum_i x_i` and divides out the
    weights, so that every z_i tends to the exact mean of the first models.

    What goes in and comes out are the models z. Between mixings the state keeps x - z, and what a
    client adds to its model is added to its numerator: `x_i <- x_i + (z_i' - z_i)`. That is
    stochastic gradient push: the sum over clients of the numerators moves by the plain sum of the
    local changes, whatever the graph. One state serves one mixed quantity.

    Args:
      topology: a strongly connected graph (a node shares equally among itself and its out-neighbours),
        or a column-stochastic mixing matrix.
      steps: gossip steps per round, >= 1.
      disconnected: whether a topology is accepted in which the model of some node never reaches another.

    Returns:
      A `Mixer` with a `PushSumState`. An inactive client keeps model and weight; what would have been
      sent to it, or by it, stays with the sender.

    Raises:
      TypeError: a topology of another type.
      ValueError: columns that do not sum to 1, a zero on the diagonal, a graph that is not strongly
        connected, or `steps` below 1.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> graph = dx.topology.from_edges(3, [[0, 1], [1, 2], [2, 0], [0, 2]], directed=True)
      >>> mixer = dx.gossip.push_sum(graph, steps=20)
      >>> models = jnp.array([3.0, 0.0, 0.0])
      >>> mixing = dx.gossip.Mixing(jax.random.key(0), jnp.int32(0))
      >>> mixed, state, metrics = mixer.apply(models, mixer.init(models), mixing)
      >>> mixed.round(2).tolist()
      [1.0, 1.0, 1.0]

    References:
      Assran et al., Stochastic Gradient Push for Distributed Deep Learning, arXiv 1811.10792;
      Nedić & Olshevsky, arXiv 1303.2289.
    """
    fix = "Pass a graph, for example topology.ring(n) or topology.from_adjacency(array)."
    validation.instance("topology", topology, (Graph, MixingMatrix), fix)
    matrix = column_stochastic(topology) if isinstance(topology, Graph) else topology
    graph, clients = matrix.graph, matrix.nodes
    if not matrix.column_stochastic:
        raise ValueError(
            f"topology must have columns that sum to 1, got weights on {graph.name} whose columns do "
            "not. Pass the graph itself, or topology.column_stochastic(graph)."
        )
    if matrix.self_weights.min() <= 0:
        raise ValueError(
            f"topology must keep a share of every client's own model, got a diagonal entry of "
            f"{matrix.self_weights.min():g} on {graph.name}. Use topology.lazy of the matrix."
        )
    validation.flag("disconnected", disconnected)
    if not disconnected:
        require_connected_together("topology", [graph])
    rolls, compact = fits_rolls(matrix), fits_slots(matrix)
    if rolls:
        tables: tuple[Any, ...] = (matrix.shift_weights,)
    elif compact:
        tables = (matrix.self_weights, *matrix.slots())
    else:
        tables = (matrix.self_weights, graph.senders, graph.receivers, matrix.weights)

    def product(tables: tuple[Array, ...], mask: Array | None) -> tuple[Rows, Array]:
        if rolls:
            return roll_rows(graph, tables[0], mask, returned=True)
        own, senders, *others, given = tables
        receivers = jnp.arange(clients)[:, None] if compact else others[0]
        if mask is not None:
            kept = jnp.where(mask[senders] & mask[receivers], given, 0)
            own = own.at[senders].add(given - kept)
            given = kept
        if compact:
            return slot_rows(senders, given, None, own)
        return edge_rows(senders, receivers, given, own), count_sent(given)

    def init(models: Models) -> PushSumState:
        require_models(models, clients)
        held = tuple(jnp.asarray(table) for table in tables)
        excess = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _wide(leaf)), models)
        return PushSumState(held, jnp.ones(clients, held[0].dtype), PerClient(excess))

    def apply(
        models: Models, state: PushSumState, mixing: Mixing
    ) -> tuple[Models, PushSumState, Metrics]:
        require_models(models, clients)
        mask = as_mask(mixing.active, clients)
        rows, sent = product(state.tables, mask)
        # One number a client: held whole, it travels in one message.
        weights = everywhere(mix_leaf(rows, everywhere(state.weights), mask))

        numerators = jax.tree.map(
            lambda z, e: mix_leaf(rows, jnp.asarray(z, e.dtype) + e, mask),
            models,
            state.excess.rows,
        )

        def unbiased(x: Array, z: Array) -> Array:
            ratio = (x / against(weights, x).astype(x.dtype)).astype(z.dtype)
            return ratio if mask is None else jnp.where(against(mask, x), ratio, z)

        mixed = jax.tree.map(unbiased, numerators, models)

        def remainder(x: Array, z: Array, before: Array) -> Array:
            # Of an inactive client x is z + e rounded, from which e does not come back bit for bit.
            return x - z if mask is None else jnp.where(against(mask, x), x - z, before)

        # Its weight travels with every model.
        measured = in_models({"models_sent": sent}, (models, weights), models)
        excess = jax.tree.map(remainder, numerators, mixed, state.excess.rows)
        return mixed, PushSumState(state.tables, weights, PerClient(excess)), measured

    known = Known(symmetric=False, doubly_stochastic=False, graph=graph)
    return repeat(Mixer(clients, init, apply, known), steps)


def _wide(leaf: Array) -> jnp.dtype:
    return jnp.promote_types(leaf.dtype, jnp.float32)
