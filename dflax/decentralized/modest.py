"""MoDeST: federated averaging whose samples and aggregators the nodes derive without a server."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, UInt32

from dflax import counter, validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.clients import map_clients, mean_metrics, replicate, select, weighted_mean
from dflax.data.dataset import Dataset
from dflax.decentralized import views as known
from dflax.decentralized.hash_sampling import first_arrivals, hashed_keys, probe
from dflax.federation import Assignment, Round
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, solver
from dflax.local.subproblem import Subproblem

FOREVER = 1 << 30


class Holders(NamedTuple):
    """The newest model and the aggregators that hold it.

    Attributes:
      models: one model per aggregator, leaves `[a, ...]`.
      holders: `[a]` int32, their ids; n for a place that nobody took.
      sample: `[s]` int32, the participants of the last round, who can put their models forward again.
      seed: `[2]`, of the hash.
      arrivals: `[n]` int32, round in which each node joins; 0 from the start.
      departures: `[n]` int32, round in which it leaves with notice.
      ranks: `[T, n]` places in the order of round number t, or None for the hash.
      time: `[]` simulated seconds.
    """

    models: Params
    holders: Int[Array, " a"]
    sample: Int[Array, " s"]
    seed: UInt32[Array, "2"]
    arrivals: Int[Array, " n"]
    departures: Int[Array, " n"]
    ranks: Int[Array, "T n"] | None
    time: Float[Array, ""]

    @property
    def params(self) -> Params:
        """The first aggregator's model."""
        return jax.tree.map(lambda leaf: leaf[0], self.models)


class Network(NamedTuple):
    """How long things take; everything in seconds and bytes.

    Attributes:
      latency: `[n, n]`, of a message.
      seconds_per_step: `[n]`, of a local step.
      uplink: `[n]` bytes per second, shared by what a node sends at once.
      downlink: `[n]` bytes per second.
    """

    latency: Float[Array, "n n"]
    seconds_per_step: Float[Array, " n"]
    uplink: Float[Array, " n"]
    downlink: Float[Array, " n"]


def modest(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    *,
    nodes: int,
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

    Where no aggregator answers at the start of a round, the first of the last round's participants that
    does takes over: senders without acknowledgement put their models forward again. Several aggregators
    invite the sample of the first one's view; participants start from the model that reaches them first.
    Participants whose views name other aggregators than most are counted in `disagreements`.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the participants' optax optimiser, fresh in every round.
      nodes: n, of the federation.
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
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState` of `Holders` and `Views`; the model is
      `state.server.params`. `init(key, params, arrivals=None, departures=None)` takes rounds in which
      nodes join and leave with notice. Metrics: the loss's own, `models` averaged, `models_sent`,
      `failed_pings`, `waves`, `lost`, `takeovers`, `disagreements`, `view_size`, `view_errors`,
      `seconds`, and `sampled`, `[s]` ids.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      de Vos et al., MoDeST: Bridging the Gap between Federated and Decentralized Learning with
      Decentralized Sampling, arXiv 2302.13837.
    """
    validation.integer("nodes", nodes, low=1)
    validation.integer("sample", sample, low=1, high=nodes)
    validation.integer("aggregators", aggregators, low=1, high=sample)
    validation.real("success_fraction", success_fraction, low=0.0, high=1.0, low_open=True)
    validation.flag("idealised", idealised)
    validation.real("ping_timeout", ping_timeout, low=0.0, low_open=True, scalar=True)
    if aggregation_timeout is not None:
        validation.real("aggregation_timeout", aggregation_timeout, low=0.0, low_open=True)
    if inactivity is not None:
        validation.real("inactivity", inactivity, low=1.0, scalar=True)
    validation.integer("min_models", min_models, low=1)
    validation.real("death", death, low=0.0, high=1.0, scalar=True)
    adverts = min(10 * sample, nodes) if adverts is None else adverts
    validation.integer("adverts", adverts, low=1, high=nodes)
    if ranks is not None and ranks.shape[1:] != (nodes,):
        raise ValueError(f"ranks must have shape [T, {nodes}], got {ranks.shape}.")
    if network is not None:
        validation.leading_axis("network", network, nodes)
    solve = solver(loss, optimizer)
    n, s, a = nodes, sample, aggregators
    # floor(s sf): in floats 100 * 0.29 is a hair below 29.
    needed = max(1, int(s * success_fraction + 1e-9))
    delta = jnp.asarray(FOREVER if inactivity is None else inactivity)

    def init(
        key: Key[Array, ""],
        params: Params,
        arrivals: Int[Array, " n"] | None = None,
        departures: Int[Array, " n"] | None = None,
    ) -> FederatedState:
        validation.typed_key("key", key)
        validation.model("params", params)
        arrivals = jnp.zeros(n, jnp.int32) if arrivals is None else jnp.asarray(arrivals, jnp.int32)
        departures = jnp.full(n, FOREVER) if departures is None else departures
        departures = jnp.asarray(departures, jnp.int32)
        validation.leading_axis("arrivals and departures", (arrivals, departures), n)
        seed = counter.seed_of(jax.random.fold_in(key, 0xFFFFFFFE))
        # The first order's first nodes hold the model.
        there = arrivals <= 0
        first = probe(_keys(seed, jnp.int32(1), ranks), there, there, a)
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
        return FederatedState(jnp.int32(0), server, () if idealised else known.equal_views(there))

    def _keys(seed: Array, round: Array, ranks: Array | None) -> Array:
        return hashed_keys(seed, round, n) if ranks is None else ranks[round % ranks.shape[0]]

    def work(assignment: Assignment, params: Params, data: Dataset, index: Array) -> Any:
        solution = solve(Subproblem(), params, assignment, data, index=index)
        return solution.params, solution.metrics

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        if round.clients != n or round.cohort is not None:
            raise ValueError(
                f"nodes must be the federation's {round.clients} clients, all invited, got {n}. Say "
                "who is on line by reports (participation.present), not by a cohort."
            )
        server, views, r = state.server, state.clients, state.round + 1
        death_key, order_key, join_key = jax.random.split(round.key, 3)
        member = (server.arrivals <= r) & (server.departures > r)
        online = member if round.reports is None else member & (round.reports > 0)
        late = online & ~jax.random.bernoulli(death_key, death, (n,))
        now, following = (_keys(server.seed, t, server.ranks) for t in (r, r + 1))
        if not idealised:
            views = _membership(views, server, online, r, join_key, adverts)

        # Who holds the model, and who takes over if nobody does.
        alive = _at(online, server.holders)
        last = jnp.zeros(n, bool).at[server.sample].set(True, mode="drop")
        heir = probe(now, last, online, 1)
        taken = ~alive.any() & heir.answered[0]
        holders = jnp.where(taken, server.holders.at[0].set(heir.chosen[0]), server.holders)
        alive = _at(online, holders)
        lead = jnp.argmax(alive)
        holder = jnp.minimum(holders[lead], n - 1)

        asked = (
            member if idealised else known.candidates(known.row(views, holder), holder, r, delta)
        )
        invited = probe(now, asked, online & alive.any(), s)
        people = jnp.minimum(invited.chosen, n - 1)
        trains = invited.answered & _at(late, invited.chosen)

        # Each starts from the model that reaches it first.
        reach = jnp.where(alive[:, None], _transfer(network, server, holders, people), jnp.inf)
        source = jnp.argmin(reach, axis=0)
        starts = jax.tree.map(lambda leaf: leaf[source], server.models)
        assignments = jax.tree.map(lambda leaf: leaf[people], round.assignments)
        trained, measured = map_clients(
            work, assignments, starts, shared=(round.data, round.number), at_once=at_once
        )

        # Everyone who trained looks for aggregators in a view that knows the sender's.
        if idealised:
            found = probe(following, member, late, a)
            lists = jnp.broadcast_to(found.chosen, (s, a))
            failed, waves = found.failed * trains.sum(), found.waves
        else:
            views, own = _exchange(views, holder, people, invited, trains, r)
            asked_next = jax.vmap(known.candidates, in_axes=(0, 0, None, None))(
                own, people, r + 1, delta
            )
            each = jax.vmap(lambda who: probe(following, who, late, a))(asked_next)
            lists = jnp.where(trains[:, None], each.chosen, n)
            failed, waves = jnp.sum(each.failed * trains), jnp.max(each.waves * trains)
        votes = jnp.zeros(n + 1).at[lists].add(trains[:, None].astype(jnp.float32))[:n]
        # The a nodes that most participants chose, the earlier in the order first.
        place = jnp.argsort(jnp.argsort(following)) / n
        best = jnp.argsort(jnp.where(votes > 0, place - 2.0 * votes, jnp.inf))[:a]
        chosen = jnp.where(votes[best] > 0, best, n).astype(jnp.int32)
        heard = (lists[:, :, None] == chosen[None, None, :]).any(1) & trains[:, None]

        start = jnp.where(trains, jnp.take_along_axis(reach, source[None], 0)[0], 0.0)
        finish = _finish(network, server, start, round, people, chosen, order_key, (s, a))
        count = heard.sum(0)
        full = count >= needed
        late_enough = jnp.zeros(a, bool)
        if aggregation_timeout is not None:
            late_enough = ~full & (count >= min_models)
        fires = (full | late_enough) & (chosen < n)
        inside = jax.vmap(first_arrivals, in_axes=(1, 1, None), out_axes=1)(
            finish, heard, jnp.int32(needed)
        )
        inside &= fires[None, :]
        means = jax.vmap(weighted_mean, in_axes=(None, 1))(trained, inside.astype(jnp.float32))
        any_fired = fires.any()
        order = jnp.argsort(~fires, stable=True)
        models = select(any_fired, jax.tree.map(lambda leaf: leaf[order], means), server.models)
        next_holders = jnp.where(any_fired, jnp.where(fires, chosen, n)[order], holders)
        if not idealised:
            views = _collect(views, people, chosen, heard, r)
        last_time = jnp.max(jnp.where(inside, finish, 0.0))
        wait = 0.0 if aggregation_timeout is None else aggregation_timeout
        seconds = ping_timeout * (invited.waves + waves) + last_time + wait * late_enough.any()
        server = server._replace(
            models=models,
            holders=next_holders,
            sample=jnp.where(any_fired, jnp.where(trains, invited.chosen, n), server.sample),
            time=server.time + seconds,
        )
        # A node sends itself nothing.
        down = (
            invited.answered[None, :] & alive[:, None] & (invited.chosen != holders[:, None])
        ).sum()
        up = (heard & (invited.chosen[:, None] != chosen[None, :])).sum()
        metrics = mean_metrics(measured, trains.astype(jnp.float32)) | {
            "models": inside.sum(0)[order[0]],
            "models_sent": down + up,
            "failed_pings": invited.failed,
            "failed_pings_upward": failed,
            "waves": invited.waves + waves,
            "lost": (~any_fired).astype(jnp.int32),
            "takeovers": taken.astype(jnp.int32),
            "disagreements": jnp.sum((lists < n) & trains[:, None]) - heard.sum(),
            "view_size": asked.sum(),
            "view_errors": jnp.float32(0)
            if idealised
            else jnp.mean((views.joined != member) * online[:, None]),
            "seconds": seconds,
            "sampled": invited.chosen,
        }
        return FederatedState(r, server, views), metrics

    return Algorithm(init, step)


def _at(mask: Array, ids: Array) -> Array:
    """The mask at ids, false for n."""
    return mask.at[ids].get(mode="fill", fill_value=False)


def _transfer(
    network: Network | None, server: Holders, holders: Array, people: Array
) -> Float[Array, "a s"]:
    """Seconds until each holder's model is with each participant."""
    if network is None:
        return jnp.zeros((holders.shape[0], people.shape[0]))
    up = network.uplink[holders][:, None] / people.shape[0]
    speed = jnp.minimum(up, network.downlink[people][None, :])
    return network.latency[holders][:, people] + _size(server.models) / speed


def _finish(
    network: Network | None,
    server: Holders,
    start: Array,
    round: Round,
    people: Array,
    chosen: Array,
    key: Key[Array, ""],
    shape: tuple[int, int],
) -> Float[Array, "s a"]:
    """When each participant's model is with each aggregator; without a network in random order."""
    if network is None:
        return jax.random.uniform(key, shape) * 1e-6
    steps = round.assignments.local_steps[people]
    trained = start + steps * network.seconds_per_step[people]
    speed = jnp.minimum(network.uplink[people][:, None] / shape[1], network.downlink[chosen][None])
    upload = network.latency[people][:, chosen] + _size(server.models) / speed
    return trained[:, None] + upload


def _size(models: PyTree[Array]) -> float:
    return float(sum(leaf[0].size * leaf.dtype.itemsize for leaf in jax.tree.leaves(models)))


def _membership(
    views: known.Views, server: Holders, online: Array, r: Array, key: Key[Array, ""], adverts: int
) -> known.Views:
    """Nodes that join or leave tell random peers; joins wait there, departures count at once."""
    n = online.shape[0]
    joins, leaves = server.arrivals == r, server.departures == r
    score = jnp.where(online[None, :], jax.random.uniform(key, (n, n)), 2.0)
    told = (jnp.argsort(jnp.argsort(score, axis=1), axis=1) < adverts) & online[None, :]
    itself = jnp.eye(n, dtype=bool)
    hears_join = (told & joins[:, None]).T & ~itself
    hears_leave = (told & leaves[:, None]).T
    own = itself & joins[None, :]
    return known.Views(
        jnp.where(itself & online[:, None], r, views.last_active),
        views.counter + (hears_leave & views.joined) + (own & ~views.joined),
        (views.joined & ~hears_leave) | own,
        views.pending | hears_join,
    )


def _exchange(
    views: known.Views, holder: Array, people: Array, invited: Any, trains: Array, r: Array
) -> tuple[known.Views, known.Views]:
    """Pings and the model's way down: both ends saw each other, receivers merge the sender's view."""
    n = views.joined.shape[0]
    reached = jnp.where(invited.answered, people, n)
    seen = views.last_active.at[holder, reached].max(r, mode="drop")
    seen = seen.at[reached, holder].max(r, mode="drop")
    views = views._replace(last_active=seen)
    sent = known.row(views, holder)
    merged = jax.vmap(known.merge, in_axes=(0, None))(known.row(views, people), sent)
    views = known.put(views, reached, merged)
    # What the sender had heard of newcomers counts for it from now on.
    views = known.put(views, holder, known.flush(known.row(views, holder), r))
    return views, merged


def _collect(
    views: known.Views, people: Array, chosen: Array, heard: Array, r: Array
) -> known.Views:
    """The models' way up: aggregators merge the senders' views; then senders apply pending joins."""
    n = views.joined.shape[0]
    rows = known.row(views, people)
    came = jax.vmap(known.merge_rows, in_axes=(None, 1))(rows, heard)
    target = jnp.where(heard.any(0), chosen, n)
    own = known.row(views, jnp.minimum(chosen, n - 1))
    views = known.put(views, target, jax.vmap(known.merge)(own, came))
    senders = jnp.where(heard.any(1), people, n)
    flushed = known.flush(known.row(views, people), r)
    return known.put(views, senders, flushed)
