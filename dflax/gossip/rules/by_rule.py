"""The mixer of a topology and a neighbour rule."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dflax import returned, validation
from dflax.algorithm import Metrics, Params
from dflax.clients import against, map_clients, mean_metrics, select
from dflax.data.dataset import Dataset
from dflax.gossip.choose import as_matrix
from dflax.gossip.mixer import Mixer, Mixing, Models, PerClient
from dflax.gossip.products.linear import as_mask, require_models, require_topology_sums
from dflax.gossip.products.stored import count_sent
from dflax.gossip.rules.calibration import Calibration, draw_calibration
from dflax.gossip.rules.heard import Heard, heard
from dflax.gossip.rules.letters import Letters, addresses, come
from dflax.gossip.rules.neighbour_rule import Neighbourhood, NeighbourRule
from dflax.topology import Graph, MixingMatrix, Schedule, Slots

Topology = Graph | MixingMatrix | Schedule | Float[np.ndarray, "n n"]
Tables = PyTree[Array]
# From the tables to whom everyone hears, `[n, k]`, and with which weights `[n, k]`.
Hears = Callable[[Tables, Mixing], tuple[Int[Array, "n k"], Float[Array, "n k"]]]


class RuleState(NamedTuple):
    """What a mixer by a rule carries.

    Attributes:
      tables: neighbours and weights, or those that a schedule reads.
      examples: the shared set that models are compared on; None for none.
      memory: the rule's, a row for every client.
    """

    tables: Tables
    examples: Dataset | None
    memory: PerClient


def by_rule(
    topology: Topology,
    rule: NeighbourRule,
    *,
    weights: Callable[[Graph], MixingMatrix] | None = None,
    at_once: int | None = None,
) -> Mixer:
    """Every client applies a rule to its own model and those of its neighbours.

        x_i <- rule(x_i, (x_j, w_ij for j that i hears))          all at once, from the models before

    Who is absent is not heard: its model, a NaN even, reaches no rule, its weight goes to the hearer's
    own model, and it keeps its own model and memory. What travels between devices is what is heard, on
    a ring the boundary rows alone; a device holds the neighbours' models of as many clients as it
    computes at once. A rule may write letters beside the models, see `NeighbourRule`.

    Args:
      topology: a graph, a mixing matrix, an array `[n, n]`, or a `Schedule` of a new graph each time. It
        may be disconnected.
      rule: see `NeighbourRule`, `aggregating`, `stateless` and `join`.
      weights: from graph to mixing matrix, as in `mixer`.
      at_once: see `dflax.map_clients`.

    Returns:
      A `Mixer`. Metrics: `models_sent`, and the rule's own.

    Raises:
      TypeError, ValueError: naming the argument; from the mixing, naming what the rule returned that
        does not fit.
    """
    fix = "Make one with gossip.aggregating, gossip.stateless or gossip.join, or write a NeighbourRule."
    validation.instance("rule", rule, NeighbourRule, fix)
    validation.at_once(at_once)
    clients, graph, tables, hears = _slots(topology, weights)

    def init(models: Models) -> RuleState:
        if rule.real:
            require_models(models, clients)
        else:
            validation.leading_axis("models", models, clients)
        held = jax.tree.map(jnp.asarray, tables)
        neighbours = held[0] if graph is not None else _unknown(hears, held)
        memory = jax.vmap(rule.init)(jax.tree.map(jnp.asarray, models), neighbours)
        shared = None if rule.examples is None else rule.examples.shared
        return RuleState(held, shared, PerClient(memory))

    def apply(
        models: Models, state: RuleState, mixing: Mixing
    ) -> tuple[Models, RuleState, Metrics]:
        mask = as_mask(mixing.active, clients)
        neighbours, given = hears(state.tables, mixing)
        if mask is not None:
            given = jnp.where(mask[:, None] & mask[neighbours], given, 0)
        examples = draw_calibration(rule.examples, state.examples, mixing, clients)
        address = None if rule.letters is None else addresses(neighbours, given)
        post = _post(rule, models, state.memory.rows, neighbours, given, mixing, at_once)

        def one(
            own: Params,
            memory: Any,
            client: Array,
            neighbours: Array,
            weights: Array,
            rows: Array | None,
            address: tuple[Array, Array] | None,
            models: Heard,
            data: Dataset | None,
            written: Heard | None,
            key: Array,
            index: Array,
        ) -> tuple[Params, Any, Metrics]:
            others = jax.tree.map(
                lambda mine, theirs: jnp.where(against(weights > 0, theirs), theirs, mine),
                own,
                models.by(client, neighbours),
            )
            calibration = Calibration(rows, data)
            here = Neighbourhood(client, neighbours, _left(weights), key, index, calibration)
            if written is not None and address is not None:
                places, comes = address
                letters = come(written.by(client, neighbours, places), comes)
                here = here._replace(letters=letters)
            return _ruled(rule, own, others, weights, memory, here)

        mixed, memory, measured = map_clients(
            one,
            models,
            state.memory.rows,
            jnp.arange(clients, dtype=jnp.int32),
            neighbours,
            given,
            examples.rows,
            address,
            shared=(
                heard(models, graph),
                examples.data,
                None if post is None else heard(post, graph),
                mixing.key,
                mixing.index,
            ),
            at_once=at_once,
        )
        if mask is not None:
            mixed, memory = select(mask, (mixed, memory), (models, state.memory.rows))
        sent = count_sent(given) + _sent(post, neighbours, address)
        metrics = _means(measured, given, mask) | {"models_sent": sent}
        return mixed, state._replace(memory=PerClient(memory)), metrics

    return Mixer(clients, init, apply, rule.known._replace(graph=graph))


def _slots(
    topology: Topology, weights: Callable[[Graph], MixingMatrix] | None
) -> tuple[int, Graph | None, Any, Hears]:
    """Number of clients, the graph where it is fixed, tables, and how they are read."""
    if isinstance(topology, Schedule):
        if weights is not None:
            raise TypeError("weights must be None beside a Schedule, which draws its own W.")
        return topology.nodes, None, topology.tables, _drawn(topology)
    matrix = as_matrix(topology, weights)
    require_topology_sums(matrix.row_stochastic, matrix.graph.name)
    neighbours, given = matrix.slots()
    if not neighbours.shape[1]:
        # One empty slot, where there are no edges at all.
        neighbours = np.arange(matrix.nodes, dtype=np.int32)[:, None]
        given = np.zeros(neighbours.shape)
    return matrix.nodes, matrix.graph, (neighbours, given), lambda tables, mixing: tables


def _drawn(schedule: Schedule) -> Hears:
    def hears(tables: Tables, mixing: Mixing) -> tuple[Array, Array]:
        drawn = schedule.draw(tables, mixing.key, mixing.index)
        if isinstance(drawn, Slots):
            return drawn.neighbours, drawn.weights
        everyone = jnp.arange(schedule.nodes, dtype=jnp.int32)
        itself = everyone[:, None] == everyone
        return jnp.broadcast_to(everyone, itself.shape), jnp.where(itself, 0, drawn)

    return hears


def _unknown(hears: Hears, tables: Tables) -> Int[Array, "n k"]:
    """Numbers of nobody, as many as there will be neighbours."""
    shape, _ = jax.eval_shape(hears, tables, Mixing(jax.random.key(0), jnp.int32(0)))
    return jnp.full(shape.shape, -1, jnp.int32)


def _left(weights: Float[Array, " k"]) -> Float[Array, ""]:
    """A client's own weight: rounding shall not give a share to whom the weights leave out."""
    left = 1 - weights.sum()
    return jnp.where(left > weights.size * jnp.finfo(left.dtype).eps, left, 0)


def _post(
    rule: NeighbourRule,
    models: Models,
    memory: Any,
    neighbours: Int[Array, "n k"],
    given: Float[Array, "n k"],
    mixing: Mixing,
    at_once: int | None,
) -> Letters | None:
    """What all clients write, leaves `[n, k, ...]`; None of a rule without letters."""
    write = rule.letters
    if write is None:
        return None
    name = "the rule's letters(own, memory, weights, here)"

    def one(
        own: Params,
        memory: Any,
        client: Array,
        neighbours: Array,
        weights: Array,
        key: Array,
        index: Array,
    ) -> Letters:
        here = Neighbourhood(
            client, neighbours, _left(weights), key, index, Calibration(None, None)
        )
        written = write(own, memory, weights, here)
        validation.instance(name, written, Letters, "Return gossip.Letters(content, models).")
        validation.leading_axis(f"the letters of {name}", written, len(neighbours))
        return written._replace(models=jnp.where(weights > 0, written.models, 0))

    clients = jnp.arange(len(neighbours), dtype=jnp.int32)
    stacked = (models, memory, clients, neighbours, given)
    return map_clients(one, *stacked, shared=(mixing.key, mixing.index), at_once=at_once)


def _sent(
    post: Letters | None, neighbours: Int[Array, "n k"], address: tuple[Array, Array] | None
) -> Array | float:
    """How many models' worth of letters arrive."""
    if post is None or address is None:
        return 0.0
    places, comes = address
    return jnp.where(comes, post.models[neighbours, places], 0).sum()


def _ruled(
    rule: NeighbourRule,
    own: Params,
    others: Params,
    weights: Array,
    memory: Any,
    here: Neighbourhood,
) -> tuple[Params, Any, Metrics]:
    """What the rule makes of it, refused by name where it does not fit."""
    name = "the rule's apply(own, others, weights, memory, here)"
    made = rule.apply(own, others, weights, memory, here)
    after, kept, metrics = returned.parts(name, made, ("own", "memory", "metrics"))
    returned.alike(f"the model of {name}", after, own, "the client's own")
    returned.alike(f"the memory of {name}", kept, memory, "the one it got")
    returned.metrics(f"the metrics of {name}", metrics)
    for metric, value in metrics.items():
        if jnp.shape(value) not in ((), weights.shape):
            raise ValueError(
                f"the metric {metric!r} of {name} must be one number, or one for each neighbour, "
                f"{weights.shape}, got shape {jnp.shape(value)}."
            )
    return after, kept, metrics


def _means(measured: Metrics, given: Float[Array, "n k"], mask: Array | None) -> Metrics:
    """Over the clients that take part, and of what is measured of each neighbour over those heard."""
    present = jnp.ones(given.shape[0]) if mask is None else mask.astype(jnp.float32)
    pairs = (given > 0).astype(jnp.float32).reshape(-1)
    return {
        name: mean_metrics(value, present)
        if value.ndim == 1
        else mean_metrics(value.reshape(-1), pairs)
        for name, value in measured.items()
    }
