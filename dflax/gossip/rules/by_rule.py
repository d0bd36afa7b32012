"""The mixer of a topology and a neighbour rule."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dflax import returned, validation
from dflax.algorithm import Metrics, Params
from dflax.channel.channel import Sending, membership
from dflax.clients import against, map_clients, mean_metrics, select
from dflax.data.dataset import Dataset
from dflax.gossip.choose import as_matrix
from dflax.gossip.mixer import Mixer, Mixing, Models, PerClient
from dflax.gossip.products.linear import as_mask, require_models, require_topology_sums
from dflax.gossip.products.stored import count_sent
from dflax.gossip.rules.by_products import mixed_by_products, own_weight, suits
from dflax.gossip.rules.calibration import Calibration, draw_calibration
from dflax.gossip.rules.heard import Heard, heard
from dflax.gossip.rules.letters import Letters, addresses, come
from dflax.gossip.rules.neighbour_rule import Neighbourhood, NeighbourRule
from dflax.gossip.rules.under_way import nothing_under_way, passed_on
from dflax.participation import Count
from dflax.topology import Graph, MixingMatrix, Schedule, Slots

Topology = Graph | MixingMatrix | Schedule | Float[np.ndarray, "n n"]
Tables = PyTree[Array]
Clients = int | Int[Array, " k"] | Bool[Array, " n"] | Sequence[int]
# From the tables to whom everyone hears, `[n, k]`, and with which weights `[n, k]`.
Hears = Callable[[Tables, Mixing], tuple[Int[Array, "n k"], Float[Array, "n k"]]]


class RuleState(NamedTuple):
    """What a mixer by a rule carries.

    Attributes:
      tables: neighbours and weights, or those that a schedule reads.
      examples: the shared set that models are compared on; None for none.
      memory: the rule's, a row for every client.
      private: what the rule has of each client from the start.
      under_way: models that are not heard yet, where there is a latency.
    """

    tables: Tables
    examples: Dataset | None
    memory: PerClient
    private: PerClient
    under_way: PerClient


def by_rule(
    topology: Topology,
    rule: NeighbourRule,
    *,
    weights: Callable[[Graph], MixingMatrix] | None = None,
    together: bool | None = None,
    watched: Clients | None = None,
    latency: int = 0,
    at_once: int | None = None,
) -> Mixer:
    """Every client applies a rule to its own model and those of its neighbours.

        x_i <- rule(x_i, (x_j, w_ij for j that i hears))          all at once, from the models before

    Who is absent is not heard: its model, a NaN even, reaches no rule, its weight goes to the hearer's
    own model, and it keeps its own model and memory. What travels between devices is what is heard, on
    a ring the boundary rows alone; a device holds the neighbours' models of as many clients as it
    computes at once. Where many hear many, a rule that is a combination of models (see `combining`) is
    found for all clients on the n^2 products of their models, and applied as one matrix: nobody's
    neighbours are copied then. A rule may write letters beside the models, see `NeighbourRule`.

    Args:
      topology: a graph, a mixing matrix, an array `[n, n]`, or a `Schedule` of a new graph each time. It
        may be disconnected.
      rule: see `NeighbourRule`, `aggregating`, `combining`, `stateless` and `join`.
      weights: from graph to mixing matrix, as in `mixer`.
      together: whether the rule is found on the products of all models at once. None does so for a
        combination where (k + 1)^2 >= 2 n, k neighbours at most of n clients.
      watched: clients by number or mask, the hostile ones of an experiment, for metrics alone: what the
        rule measures of each neighbour, `used` for example, is also averaged over the watched among
        those that the others hear, as `used_of_watched`.
      latency: l >= 0, static: neighbours are heard as they were l mixings ago, the own model as it is.
        Until then, and where they did not take part then, they are not heard.
      at_once: see `dflax.map_clients`.

    Returns:
      A `Mixer`. Metrics: `models_sent`, and the rule's own.

    Raises:
      TypeError, ValueError: naming the argument, a graph on which a client hears fewer than the rule
        must among them; from the mixing, naming what the rule returned that does not fit.
    """
    fix = "Make one with gossip.aggregating, gossip.stateless or gossip.join, or write a NeighbourRule."
    validation.instance("rule", rule, NeighbourRule, fix)
    validation.integer("latency", latency, low=0)
    if latency and rule.letters is not None:
        raise ValueError(f"latency must be 0 of a rule that writes letters, got {latency}.")
    validation.at_once(at_once)
    clients, graph, tables, hears = _slots(topology, weights)
    shape = _unknown(hears, tables)
    _require_heard(rule, topology, graph, shape.shape[1])
    if together is not None:
        validation.flag("together", together)
    if together and rule.shares is None:
        raise ValueError("together must not be True of a rule that is no combination, got True.")
    if together and latency:
        raise ValueError(f"together must not be True with a latency, got latency={latency}.")
    suited = suits(clients, shape.shape[1]) and not latency if together is None else together
    shares = rule.shares if suited else None
    seen = None if watched is None else _mask("watched", watched, clients)

    def init(models: Models) -> RuleState:
        if rule.real:
            require_models(models, clients)
        else:
            validation.leading_axis("models", models, clients)
        held = jax.tree.map(jnp.asarray, tables)
        neighbours = held[0] if graph is not None else jnp.full(shape.shape, -1, jnp.int32)
        memory = jax.vmap(rule.init)(jax.tree.map(jnp.asarray, models), neighbours)
        shared = None if rule.examples is None else rule.examples.shared
        if jax.tree.leaves(rule.private):
            validation.leading_axis("rule.private", rule.private, clients)
        private = jax.tree.map(jnp.asarray, rule.private)
        late: Any = nothing_under_way(models, latency) if latency else ()
        return RuleState(held, shared, *map(PerClient, (memory, private, late)))

    def apply(
        models: Models, state: RuleState, mixing: Mixing
    ) -> tuple[Models, RuleState, Metrics]:
        mask = as_mask(mixing.active, clients)
        neighbours, given = hears(state.tables, mixing)
        sent, there, late = models, mask, state.under_way.rows
        if latency:
            sent, there, late = passed_on(late, models, mask)
        if mask is not None:
            given = jnp.where(mask[:, None], given, 0)
        if there is not None:
            given = jnp.where(there[neighbours], given, 0)
        if shares is not None:
            mixed, measured = mixed_by_products(shares, models, neighbours, given, mixing, mask)
            metrics = _means(measured, neighbours, given, mask, seen)
            return mixed, state, metrics | {"models_sent": count_sent(given)}
        examples = draw_calibration(rule.examples, state.examples, mixing, clients)
        address = None if rule.letters is None else addresses(neighbours, given)
        post = _post(rule, models, state, neighbours, given, mixing, at_once)

        def one(
            own: Params,
            memory: Any,
            private: Any,
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
            left = own_weight(weights)
            here = Neighbourhood(client, neighbours, left, key, index, calibration, private)
            if written is not None and address is not None:
                places, comes = address
                letters = come(written.by(client, neighbours, places), comes)
                here = here._replace(letters=letters)
            return _ruled(rule, own, others, weights, memory, here)

        mixed, memory, measured = map_clients(
            one,
            models,
            state.memory.rows,
            state.private.rows,
            jnp.arange(clients, dtype=jnp.int32),
            neighbours,
            given,
            examples.rows,
            address,
            shared=(
                heard(sent, graph),
                examples.data,
                None if post is None else heard(post, graph),
                mixing.key,
                mixing.index,
            ),
            at_once=at_once,
        )
        if mask is not None:
            mixed, memory = select(mask, (mixed, memory), (models, state.memory.rows))
        traffic = count_sent(given) + _sent(post, neighbours, address)
        metrics = _means(measured, neighbours, given, mask, seen) | {"models_sent": traffic}
        after = state._replace(memory=PerClient(memory), under_way=PerClient(late))
        return mixed, after, metrics

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


def _unknown(hears: Hears, tables: Tables) -> jax.ShapeDtypeStruct:
    """The shape `[n, k]` of whom everyone hears."""
    held = jax.tree.map(jnp.asarray, tables)
    return jax.eval_shape(hears, held, Mixing(jax.random.key(0), jnp.int32(0)))[0]


def _require_heard(
    rule: NeighbourRule, topology: Topology, graph: Graph | None, slots: int
) -> None:
    """Refuse a topology on which some client hears fewer models than the rule must."""
    least = slots + 1
    if graph is not None:
        least = 1 + int(np.asarray(graph.in_degrees).min(initial=slots))
    elif isinstance(topology, Schedule) and topology.least is not None:
        least = 1 + topology.least
    if least < rule.least:
        name = "a schedule" if graph is None else graph.name
        raise ValueError(
            f"rule must be given at least {rule.least} models by every client's neighbourhood, its own "
            f"among them, got {name} on which one hears {least}. A rule that bears f arbitrary models "
            "asks for 2 f + 1: take a smaller f, or a topology of more neighbours."
        )


def _mask(name: str, clients: Clients, count: int) -> Bool[Array, " n"]:
    """Which of so many clients are named."""
    everyone = Sending(jax.random.key(0), jnp.int32(0), jnp.arange(count), Count(count))
    return membership(clients, name)(everyone)


def _post(
    rule: NeighbourRule,
    models: Models,
    state: RuleState,
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
        private: Any,
        client: Array,
        neighbours: Array,
        weights: Array,
        key: Array,
        index: Array,
    ) -> Letters:
        left, nothing = own_weight(weights), Calibration(None, None)
        here = Neighbourhood(client, neighbours, left, key, index, nothing, private)
        written = write(own, memory, weights, here)
        validation.instance(name, written, Letters, "Return gossip.Letters(content, models).")
        validation.leading_axis(f"the letters of {name}", written, len(neighbours))
        return written._replace(models=jnp.where(weights > 0, written.models, 0))

    clients = jnp.arange(len(neighbours), dtype=jnp.int32)
    stacked = (models, state.memory.rows, state.private.rows, clients, neighbours, given)
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


def _means(
    measured: Metrics,
    neighbours: Int[Array, "n k"],
    given: Float[Array, "n k"],
    mask: Array | None,
    watched: Bool[Array, " n"] | None,
) -> Metrics:
    """Over the clients that take part, and of what is measured of each neighbour over those heard."""
    present = jnp.ones(given.shape[0]) if mask is None else mask.astype(jnp.float32)
    heard = given > 0
    means = {}
    for name, value in measured.items():
        if value.ndim == 1:
            means[name] = mean_metrics(value, present)
            continue
        pairs = {name: heard}
        if watched is not None:
            pairs[f"{name}_of_watched"] = heard & ~watched[:, None] & watched[neighbours]
        for title, chosen in pairs.items():
            counted = chosen.astype(jnp.float32).reshape(-1)
            means[title] = mean_metrics(value.reshape(-1), counted)
    return means
