"""The stages of a round of MoDeST: who is there, whom the holders invite, who hears what is trained."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import counter, validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import FederatedState, Metrics, Params
from dflax.channel.channel import Channel, Sending, sent_through
from dflax.clients import gather, replicate
from dflax.decentralized.framework.rows import put
from dflax.decentralized.modest.hash_sampling import Probe, probe_in_order
from dflax.decentralized.modest.holders import (
    Holders,
    at,
    order_of,
    who_holds,
)
from dflax.decentralized.modest.partial_aggregation import Election
from dflax.decentralized.modest.traffic import traffic
from dflax.decentralized.modest.transfer_times import Network
from dflax.decentralized.modest.view_exchange import descend
from dflax.decentralized.modest.views import Views, candidates, equal_views, row
from dflax.population import Round

FOREVER = 1 << 30


class Nodes(NamedTuple):
    """What every node carries.

    Attributes:
      views: what it believes of the population; () where everyone knows.
      channel: the channel's memory, leaves `[n, ...]`; None without a channel.
    """

    views: Views | tuple[()]
    channel: Any = None


class Protocol(NamedTuple):
    """The settings of `modest`, checked.

    Attributes:
      nodes: n; sample: s; aggregators: a.
      needed: models that an aggregator waits for, floor(s sf).
      least: models that it makes do with after the time-out; None: it waits for ever.
      rule: what aggregators make of the models that reach them.
    """

    nodes: int
    sample: int
    aggregators: int
    needed: int
    least: int | None
    inactivity: Int[Array, ""]
    idealised: bool
    ping_timeout: float | Float[Array, ""]
    aggregation_timeout: float | Float[Array, ""]
    death: float | Float[Array, ""]
    adverts: int
    network: Network | None
    rule: Aggregator
    channel: Channel | None


class Membership(NamedTuple):
    """Who is there in a round, and in which orders nodes are asked.

    Attributes:
      member: `[n]` who has joined and not left; online: who of them answers.
      late: who is still there when models are sent up.
      joins: who joins now; leaves: who leaves now.
      now: `[n]` the order of this round; following: that of the next.
    """

    member: Bool[Array, " n"]
    online: Bool[Array, " n"]
    late: Bool[Array, " n"]
    joins: Bool[Array, " n"]
    leaves: Bool[Array, " n"]
    now: Int[Array, " n"]
    following: Int[Array, " n"]


class Invited(NamedTuple):
    """A round's sample.

    Attributes:
      holders: `[a]` who holds the model; alive: who of them answers.
      takes_over: whether one of the last sample does it in their place.
      asked: `[n]` whom the first holder takes for candidates.
      probe: what became of the pings.
      people: `[s]` the sample's numbers, some node's where there is nobody.
      trains: `[s]` who of them lives to send its model.
    """

    holders: Int[Array, " a"]
    alive: Bool[Array, " a"]
    takes_over: Bool[Array, ""]
    asked: Bool[Array, " n"]
    probe: Probe
    people: Int[Array, " s"]
    trains: Bool[Array, " s"]

    @property
    def holder(self) -> Int[Array, ""]:
        """The first holder that answers."""
        return jnp.minimum(self.holders[jnp.argmax(self.alive)], len(self.asked) - 1)


def begin(
    protocol: Protocol,
    key: Key[Array, ""],
    params: Params,
    ranks: Int[Array, "T n"] | None,
    arrivals: Int[Array, " n"] | None,
    departures: Int[Array, " n"] | None,
    present: Bool[Array, " n"] | None,
) -> FederatedState:
    """The state before the first round: the first order's first nodes on line hold the model."""
    n = protocol.nodes
    if jax.tree.leaves(protocol.rule.init(params)):
        raise ValueError(
            "aggregator must keep no state, got one that does. Who aggregates changes from round to "
            "round, and nobody would hand the state on; take a rule without memory."
        )
    arrivals = jnp.zeros(n, jnp.int32) if arrivals is None else jnp.asarray(arrivals, jnp.int32)
    departures = jnp.full(n, FOREVER) if departures is None else departures
    departures = jnp.asarray(departures, jnp.int32)
    validation.leading_axis("arrivals and departures", (arrivals, departures, present), n)
    seed = counter.seed_of(jax.random.fold_in(key, counter.OF_ORDERS))
    there = arrivals <= 0
    online = there if present is None else there & present
    order = order_of(seed, ranks, n, jnp.int32(1))
    first = probe_in_order(order, there, online, protocol.aggregators)
    server = Holders(
        replicate(params, protocol.aggregators),
        first.chosen,
        jnp.full(protocol.sample, n, jnp.int32),
        seed,
        arrivals,
        departures,
        ranks,
        jnp.zeros(()),
    )
    memory = None if protocol.channel is None else replicate(protocol.channel.init(params), n)
    clients = Nodes(() if protocol.idealised else equal_views(there), memory)
    return FederatedState(jnp.int32(0), server, clients)


def membership(
    protocol: Protocol, server: Holders, round: Round, r: Int[Array, ""]
) -> tuple[Key[Array, ""], Key[Array, ""], Membership]:
    """Who is there in round r, and the keys of the order of uploads and of those who join."""
    n = protocol.nodes
    death_key, order_key, join_key = jax.random.split(round.key, 3)
    member = (server.arrivals <= r) & (server.departures > r)
    online = member if round.reports is None else member & (round.reports > 0)
    late = online & ~jax.random.bernoulli(death_key, protocol.death, (n,))
    now, following = (order_of(server.seed, server.ranks, n, t) for t in (r, r + 1))
    joins, leaves = server.arrivals == r, server.departures == r
    return order_key, join_key, Membership(member, online, late, joins, leaves, now, following)


def invitation(
    protocol: Protocol,
    server: Holders,
    views: Any,
    there: Membership,
    r: Int[Array, ""],
) -> Invited:
    """The holders ping the order of the round, in the first one's view, until s nodes answer."""
    n, online = protocol.nodes, there.online
    holders, alive, taken = who_holds(server, there.now, online)
    holder = jnp.minimum(holders[jnp.argmax(alive)], n - 1)
    asked = there.member
    if not protocol.idealised:
        asked = candidates(row(views, holder), holder, r, protocol.inactivity)
    probe = probe_in_order(there.now, asked, online & alive.any(), protocol.sample)
    trains = probe.answered & at(there.late, probe.chosen)
    return Invited(holders, alive, taken, asked, probe, jnp.minimum(probe.chosen, n - 1), trains)


def look_upward(
    protocol: Protocol,
    server: Holders,
    views: Any,
    there: Membership,
    invited: Invited,
    r: Int[Array, ""],
) -> tuple[Any, Probe]:
    """Everyone who trained looks for aggregators in a view that knows the sender's."""
    following, late, a = there.following, there.late, protocol.aggregators
    if protocol.idealised:
        found = probe_in_order(following, there.member, late, a)
        return views, replicate(found, protocol.sample)
    views, received = descend(views, invited.holder, invited.people, invited.probe, r)
    asked = jax.vmap(candidates, in_axes=(0, 0, None, None))(
        received, invited.people, r + 1, protocol.inactivity
    )
    return views, jax.vmap(lambda asked: probe_in_order(following, asked, late, a))(asked)


def send_upward(
    protocol: Protocol,
    trained: Params,
    sent: Election,
    invited: Invited,
    memory: Any,
    round: Round,
) -> tuple[Params, Election, Any, Metrics]:
    """The trained models as they arrive, who hears them, and the channel's memory and metrics."""
    if protocol.channel is None:
        return trained, sent, memory, {}
    key = jax.random.fold_in(round.key, counter.OF_SENDING)
    trained, arrived, after, counted = sent_through(
        protocol.channel,
        trained,
        invited.trains.astype(jnp.float32),
        gather(memory, invited.people),
        Sending(key, round.number, invited.people, round.clients),
    )
    memory = put(memory, jnp.where(invited.trains, invited.people, protocol.nodes), after)
    return trained, sent._replace(heard=sent.heard & (arrived > 0)[:, None]), memory, counted


def of_the_sample(
    protocol: Protocol,
    views: Any,
    there: Membership,
    invited: Invited,
    found: Probe,
    named: Int[Array, "s a"],
    sent: Election,
    size: float,
) -> Metrics:
    """What is counted of pings, views and traffic."""
    online, told, errors = there.online, jnp.int32(0), jnp.float32(0)
    if isinstance(views, Views):
        told = there.joins.sum() + there.leaves.sum()
        errors = jnp.mean((views.joined != there.member) * online[:, None])
    counted = traffic(
        invited.holders,
        invited.alive,
        invited.probe,
        found,
        invited.trains,
        sent,
        told * jnp.minimum(protocol.adverts, online.sum()),
        size=size,
        entries=0 if protocol.idealised else protocol.nodes,
    )
    return counted | {
        "failed_pings": invited.probe.failed,
        "failed_pings_upward": jnp.sum(found.failed * invited.trains),
        "takeovers": invited.takes_over.astype(jnp.int32),
        "disagreements": jnp.sum(named < protocol.nodes) - sent.heard.sum(),
        "view_size": invited.asked.sum(),
        "view_errors": errors,
        "sampled": invited.probe.chosen,
    }
