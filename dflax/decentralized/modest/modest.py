"""MoDeST: federated averaging whose samples and aggregators the nodes derive without a server."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import counter, validation
from dflax.aggregation.aggregator import Aggregator, Combining, mean
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import map_clients, mean_metrics, select
from dflax.data.dataset import Dataset
from dflax.decentralized.modest.holders import (
    require_ranks,
)
from dflax.decentralized.modest.partial_aggregation import average, elect
from dflax.decentralized.modest.stages import (
    FOREVER,
    Nodes,
    Protocol,
    begin,
    invitation,
    look_upward,
    membership,
    of_the_sample,
    send_upward,
)
from dflax.decentralized.modest.traffic import model_bytes
from dflax.decentralized.modest.transfer_times import Network, downloads, uploads
from dflax.decentralized.modest.view_exchange import announce, ascend
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.models.averaged import warn_of_averaging
from dflax.population import Assignment, Round


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
    protocol = Protocol(
        nodes=clients,
        sample=sample,
        aggregators=aggregators,
        # floor(s sf): in floats 100 * 0.29 is a hair below 29.
        needed=max(1, int(sample * success_fraction + 1e-9)),
        least=None if aggregation_timeout is None else min_models,
        inactivity=jnp.asarray(FOREVER if inactivity is None else inactivity),
        idealised=idealised,
        ping_timeout=ping_timeout,
        aggregation_timeout=0.0 if aggregation_timeout is None else aggregation_timeout,
        death=death,
        adverts=adverts,
        network=network,
        rule=rule,
        channel=channel,
    )

    def init(
        key: Key[Array, ""],
        params: Params,
        arrivals: Int[Array, " n"] | None = None,
        departures: Int[Array, " n"] | None = None,
        present: Bool[Array, " n"] | None = None,
    ) -> FederatedState:
        validation.typed_key("key", key)
        validation.model("params", params)
        warn_of_averaging(params)
        return begin(protocol, key, params, ranks, arrivals, departures, present)

    def work(
        assignment: Assignment, source: Array, models: Params, data: Dataset, index: Array
    ) -> Any:
        params = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, source, 0, False), models
        )
        solution = solve(Subproblem(), params, assignment, data, index=index)
        return solution.params, solution.metrics

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        if round.clients != clients or round.cohort is not None:
            raise ValueError(
                f"clients must be the federation's {round.clients} clients, all invited, got {clients}. "
                "Say who is on line by reports (participation.present), not by a cohort."
            )
        server, (views, memory), r = state.server, state.clients, state.round + 1
        order_key, join_key, there = membership(protocol, server, round, r)
        size = model_bytes(server.models)
        if not idealised:
            views = announce(views, there.joins, there.leaves, there.online, r, join_key, adverts)
        invited = invitation(protocol, server, views, there, r)

        # Each starts from the model that reaches it first.
        reach = downloads(network, invited.holders, invited.people, size)
        reach = jnp.where(invited.alive[:, None], reach, jnp.inf)
        source = jnp.argmin(reach, axis=0)
        assignments = jax.tree.map(lambda leaf: leaf[invited.people], round.assignments)
        trained, measured = map_clients(
            work,
            assignments,
            source,
            shared=(server.models, round.data, round.number),
            at_once=at_once,
        )

        views, found = look_upward(protocol, server, views, there, invited, r)
        named = jnp.where(invited.trains[:, None], found.chosen, clients)
        sent = elect(named, there.following)
        trained, heard, memory, counted = send_upward(
            protocol, trained, sent, invited, memory, round
        )
        start = jnp.where(invited.trains, reach.min(0), 0.0)
        steps = round.assignments.local_steps[invited.people]
        finish = uploads(network, start, steps, invited.people, heard.chosen, size, order_key)
        made = average(
            trained,
            finish,
            heard,
            clients,
            needed=protocol.needed,
            least=protocol.least,
            rule=rule,
            combining=Combining(
                jax.random.fold_in(round.key, counter.OF_AVERAGING),
                round.number,
                invited.people,
                round.clients,
            ),
        )
        if not idealised:
            views = ascend(views, invited.people, *heard, r)
        waves = invited.probe.waves + jnp.max(found.waves * invited.trains)
        seconds = ping_timeout * waves + made.seconds + protocol.aggregation_timeout * made.waited
        fired = made.fires.any()
        server = server._replace(
            models=select(fired, made.models, server.models),
            holders=jnp.where(fired, made.holders, invited.holders),
            sample=jnp.where(
                fired, jnp.where(invited.trains, invited.probe.chosen, clients), server.sample
            ),
            time=server.time + seconds,
        )
        metrics = (
            mean_metrics(measured, invited.trains.astype(jnp.float32)) | made.metrics | counted
        )
        metrics |= {"waves": waves, "seconds": seconds, "lost": (~fired).astype(jnp.int32)}
        metrics |= {"models": made.counted[0]}
        metrics |= of_the_sample(protocol, views, there, invited, found, named, sent, size)
        return FederatedState(r, server, Nodes(views, memory)), metrics

    return Algorithm(init, step)
