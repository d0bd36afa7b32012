"""MoDeST: federated averaging whose samples and aggregators the nodes derive without a server."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import counter, validation
from dflax.aggregation.aggregator import Aggregator, mean
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel, Sending, sent_through
from dflax.clients import gather, map_clients, mean_metrics, replicate, select
from dflax.data.dataset import Dataset
from dflax.decentralized.modest.hash_sampling import probe_in_order
from dflax.decentralized.modest.holders import (
    Holders,
    at,
    order_of,
    require_ranks,
    who_holds,
)
from dflax.decentralized.modest.partial_aggregation import Election, average, elect
from dflax.decentralized.modest.traffic import model_bytes, traffic
from dflax.decentralized.modest.transfer_times import Network, downloads, uploads
from dflax.decentralized.modest.view_exchange import announce, ascend, descend
from dflax.decentralized.modest.views import Views, candidates, equal_views, row
from dflax.gossip.rows import put
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.models.averaged import warn_of_averaging
from dflax.population import Assignment, Round

FOREVER = 1 << 30


class Nodes(NamedTuple):
    """What every node carries.

    Attributes:
      views: what it believes of the population; () where everyone knows.
      channel: the channel's memory, leaves `[n, ...]`; None without a channel.
    """

    views: Views | tuple[()]
    channel: Any = None


def modest(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    *,
    clients: int,
    sample: int,
    aggregators: int = 1,
    success_fraction: float = 1.0,
    inactivity: int | Int[Array, ""] | None = None,
    idealised: bool = False,
    ping_timeout: float | Float[Array, ""] = 5.0,
    aggregation_timeout: float | Float[Array, ""] | None = 300.0,
    min_models: int = 3,
    death: float | Float[Array, ""] = 0.0,
    adverts: int | None = None,
    network: Network | None = None,
    ranks: Int[Array, "T n"] | None = None,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Decentralized sampling: who trains and who averages follows from a hash of node and round.

    order(r) sorts the nodes of a view by a hash of (id, r). In round r an aggregator that holds w

        pings order(r) until s nodes answer, and sends them w and its view;
        they train: y_i = K local steps from w;
        each pings order(r + 1) until a nodes answer, and sends them y_i and its view;
        an aggregator that has floor(s sf) models averages them, without weights: the next w.

    With equal views all nodes derive the same order, so nobody has to agree on anything; views differ
    when nodes come, go and fall silent, and spread with the models. When fewer models than that arrive,
    an aggregator waits for the time-out and makes do with `min_models`, else the round is lost and w
    goes on. Whoever does not report in a round of the federation is off line in it: it answers no ping
    and forgets nothing. One step is one round.

    Where no aggregator answers at the start of a round, one of the last round's participants takes its
    place: the first in the order of the round that answers. Senders without acknowledgement put their
    models forward again. Several aggregators
    invite the sample of the first one's view; participants start from the model that reaches them first.
    Participants whose views name other aggregators than most are counted in `disagreements`.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the participants' optax optimiser, fresh in every round.
      clients: n, of the federation.
      sample: s in [1, n].
      aggregators: a in [1, s].
      success_fraction: sf in (0, 1]; static.
      inactivity: rounds after which a node that was not seen is no candidate; traceable; None: never.
      idealised: everyone knows the true membership; no views are kept.
      ping_timeout: seconds, > 0; traceable.
      aggregation_timeout: seconds, > 0, traceable; None: aggregators wait for ever and a round with
        too few models is lost.
      min_models: after the time-out, >= 1.
      death: probability of each node to die between invitation and upload, in [0, 1]; traceable.
      adverts: peers that a node tells when it joins or leaves; default 10 s.
      network: default no latency; models then arrive in random order.
      ranks: orders given as a table, see `md5_ranks`; default integer mixing of node, round and key.
      aggregator: what an aggregator makes of the models that reach it, each of weight 1; default their
        mean. It gets whole models, not changes, as `aggregation.variance_corrected()` wants them, and
        may keep no state: who aggregates changes from round to round.
      channel: what happens to trained models on their way to the aggregators; default nothing. A lost
        one, and the view that travels with it, reaches none of them.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState` of `Holders` and `Nodes`; the model is
      `state.server.params`. `init(key, params, arrivals=None, departures=None, present=None)` takes
      rounds in which nodes join and leave with notice, and `[n]`, who is on line at the start (the
      others are known all the same). Metrics: the loss's own, `models` averaged, `failed_pings` of a
      sample, `failed_pings_upward`, `waves`, `lost`, `takeovers`, `disagreements`, `view_size`,
      `view_errors`, `seconds`, `sampled`, `[s]` ids, those of aggregator and channel, and what
      `traffic` counts.

    Raises:
      TypeError, ValueError: naming the argument.

    Warns:
      dflax.models.AveragedStatistics: from `init`, a model with "batch_stats".

    References:
      de Vos et al., MoDeST: Bridging the Gap between Federated and Decentralized Learning with
      Decentralized Sampling, arXiv 2302.13837.
    """
    validation.integer("clients", clients, low=1)
    validation.integer("sample", sample, low=1, high=clients)
    validation.integer("aggregators", aggregators, low=1, high=sample)
    validation.real(
        "success_fraction", success_fraction, low=0.0, high=1.0, low_open=True, scalar=True
    )
    validation.flag("idealised", idealised)
    validation.real("ping_timeout", ping_timeout, low=0.0, low_open=True, scalar=True)
    if aggregation_timeout is not None:
        validation.real(
            "aggregation_timeout", aggregation_timeout, low=0.0, low_open=True, scalar=True
        )
    if inactivity is not None:
        validation.real("inactivity", inactivity, low=1.0, scalar=True)
    validation.integer("min_models", min_models, low=1)
    validation.real("death", death, low=0.0, high=1.0, scalar=True)
    adverts = min(10 * sample, clients) if adverts is None else adverts
    validation.integer("adverts", adverts, low=1, high=clients)
    if ranks is not None:
        require_ranks(ranks, clients)
    if channel is not None:
        validation.instance("channel", channel, Channel, "Make one with dflax.channel.")
    validation.at_once(at_once)
    if network is not None:
        validation.instance("network", network, Network, "Make a dflax.decentralized.Network.")
        validation.leading_axis("network", network, clients)
    rule = mean() if aggregator is None else aggregator
    validation.instance("aggregator", rule, Aggregator, "For example dflax.aggregation.mean().")
    solve = solver(loss, optimizer)
    n, s, a = clients, sample, aggregators
    # floor(s sf): in floats 100 * 0.29 is a hair below 29.
    needed = max(1, int(s * success_fraction + 1e-9))
    least = None if aggregation_timeout is None else min_models
    delta = jnp.asarray(FOREVER if inactivity is None else inactivity)

    def init(
        key: Key[Array, ""],
        params: Params,
        arrivals: Int[Array, " n"] | None = None,
        departures: Int[Array, " n"] | None = None,
        present: Bool[Array, " n"] | None = None,
    ) -> FederatedState:
        validation.typed_key("key", key)
        validation.model("params", params)
        if jax.tree.leaves(rule.init(params)):
            raise ValueError(
                "aggregator must keep no state, got one that does. Who aggregates changes from round to "
                "round, and nobody would hand the state on; take a rule without memory."
            )
        arrivals = jnp.zeros(n, jnp.int32) if arrivals is None else jnp.asarray(arrivals, jnp.int32)
        departures = jnp.full(n, FOREVER) if departures is None else departures
        departures = jnp.asarray(departures, jnp.int32)
        validation.leading_axis("arrivals and departures", (arrivals, departures, present), n)
        warn_of_averaging(params)
        seed = counter.seed_of(jax.random.fold_in(key, counter.OF_ORDERS))
        there = arrivals <= 0
        online = there if present is None else there & present
        # The first order's first nodes on line hold the model.
        first = probe_in_order(order_of(seed, ranks, n, jnp.int32(1)), there, online, a)
        server = Holders(
            replicate(params, a),
            first.chosen,
            jnp.full(s, n, jnp.int32),
            seed,
            arrivals,
            departures,
            ranks,
            jnp.zeros(()),
        )
        memory = None if channel is None else replicate(channel.init(params), n)
        clients = Nodes(() if idealised else equal_views(there), memory)
        return FederatedState(jnp.int32(0), server, clients)

    def work(assignment: Assignment, params: Params, data: Dataset, index: Array) -> Any:
        solution = solve(Subproblem(), params, assignment, data, index=index)
        return solution.params, solution.metrics

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        if round.clients != n or round.cohort is not None:
            raise ValueError(
                f"clients must be the federation's {round.clients} clients, all invited, got {n}. Say "
                "who is on line by reports (participation.present), not by a cohort."
            )
        server, (views, memory), r = state.server, state.clients, state.round + 1
        death_key, order_key, join_key = jax.random.split(round.key, 3)
        joins, leaves = server.arrivals == r, server.departures == r
        member = (server.arrivals <= r) & (server.departures > r)
        online = member if round.reports is None else member & (round.reports > 0)
        late = online & ~jax.random.bernoulli(death_key, death, (n,))
        now, following = (order_of(server.seed, server.ranks, n, t) for t in (r, r + 1))
        size = model_bytes(server.models)
        if not idealised:
            views = announce(views, joins, leaves, online, r, join_key, adverts)

        holders, alive, taken = who_holds(server, now, online)
        holder = jnp.minimum(holders[jnp.argmax(alive)], n - 1)
        asked = member if idealised else candidates(row(views, holder), holder, r, delta)
        invited = probe_in_order(now, asked, online & alive.any(), s)
        people = jnp.minimum(invited.chosen, n - 1)
        trains = invited.answered & at(late, invited.chosen)

        # Each starts from the model that reaches it first.
        reach = jnp.where(alive[:, None], downloads(network, holders, people, size), jnp.inf)
        source = jnp.argmin(reach, axis=0)
        starts = jax.tree.map(lambda leaf: leaf[source], server.models)
        assignments = jax.tree.map(lambda leaf: leaf[people], round.assignments)
        trained, measured = map_clients(
            work, assignments, starts, shared=(round.data, round.number), at_once=at_once
        )

        # Everyone who trained looks for aggregators in a view that knows the sender's.
        if idealised:
            found = probe_in_order(following, member, late, a)
            found = replicate(found, s)
        else:
            views, received = descend(views, holder, people, invited, r)
            asked_next = jax.vmap(candidates, in_axes=(0, 0, None, None))(
                received, people, r + 1, delta
            )
            found = jax.vmap(lambda asked: probe_in_order(following, asked, late, a))(asked_next)
        named = jnp.where(trains[:, None], found.chosen, n)
        sent = elect(named, following)
        election: Election = sent
        counted: Metrics = {}
        if channel is not None:
            trained, arrived, after, counted = sent_through(
                channel,
                trained,
                trains.astype(jnp.float32),
                gather(memory, people),
                Sending(jax.random.fold_in(round.key, counter.OF_SENDING), round.number, people),
            )
            memory = put(memory, jnp.where(trains, people, n), after)
            election = sent._replace(heard=sent.heard & (arrived > 0)[:, None])
        start = jnp.where(trains, reach.min(0), 0.0)
        steps = round.assignments.local_steps[people]
        finish = uploads(network, start, steps, people, election.chosen, size, order_key)
        made = average(
            trained,
            finish,
            election,
            n,
            needed=needed,
            least=least,
            rule=rule,
            key=jax.random.fold_in(round.key, counter.OF_AVERAGING),
        )
        if not idealised:
            views = ascend(views, people, *election, r)

        fired = made.fires.any()
        waves = invited.waves + jnp.max(found.waves * trains)
        wait = 0.0 if aggregation_timeout is None else aggregation_timeout * made.waited
        seconds = ping_timeout * waves + made.seconds + wait
        server = server._replace(
            models=select(fired, made.models, server.models),
            holders=jnp.where(fired, made.holders, holders),
            sample=jnp.where(fired, jnp.where(trains, invited.chosen, n), server.sample),
            time=server.time + seconds,
        )
        told = jnp.int32(0) if idealised else joins.sum() + leaves.sum()
        metrics = mean_metrics(measured, trains.astype(jnp.float32)) | made.metrics | counted
        metrics |= {
            "models": made.counted[0],
            "failed_pings": invited.failed,
            "failed_pings_upward": jnp.sum(found.failed * trains),
            "waves": waves,
            "lost": (~fired).astype(jnp.int32),
            "takeovers": taken.astype(jnp.int32),
            "disagreements": jnp.sum(named < n) - sent.heard.sum(),
            "view_size": asked.sum(),
            "view_errors": jnp.float32(0)
            if idealised
            else jnp.mean((views.joined != member) * online[:, None]),
            "seconds": seconds,
            "sampled": invited.chosen,
        }
        metrics |= traffic(
            holders,
            alive,
            invited,
            found,
            trains,
            sent,
            told * jnp.minimum(adverts, online.sum()),
            size=size,
            entries=0 if idealised else n,
        )
        return FederatedState(r, server, Nodes(views, memory)), metrics

    return Algorithm(init, step)
