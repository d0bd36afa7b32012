"""A server that follows a timetable: it applies changes when they arrive, however old."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import validation
from dflax.aggregation.aggregator import counted_sum
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.asynchronous.staleness import Discount
from dflax.asynchronous.timetable import Timetable
from dflax.asynchronous.waves import Waves, waves
from dflax.channel.channel import Channel, Sending, perfect, sent_through
from dflax.clients import (
    against,
    client_devices,
    everywhere,
    gather,
    if_there,
    map_present,
    mean_metrics,
    replicate,
    scatter,
    sum_cohort,
)
from dflax.data.dataset import Dataset
from dflax.local import Loss, Optimizer, Oracle, Solution, Subproblem, solver
from dflax.metrics import disjoint
from dflax.models.averaged import warn_of_averaging
from dflax.population import Assignment, Round

# How many changes a step of one device adds in one pass over them, which also leaves out what did not
# arrive; more are one product.
IN_ONE_PASS = 32


class Working(NamedTuple):
    """What the server keeps beside its model.

    Attributes:
      models: those that clients work from, leaves `[S, ...]`.
      optimizer: the state of the server's optimiser.
    """

    models: PyTree[Array]
    optimizer: PyTree[Array]


class AsyncServer(NamedTuple):
    """The server: its model, and what it keeps beside."""

    params: Params
    memory: Working


class AsyncClients(NamedTuple):
    """The clients: changes that they keep, and the channel's memory, leaves `[n, ...]` or none."""

    kept: PyTree[Array]
    channel: PyTree[Array]


def asynchronous_server(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    timetable: Timetable | Waves,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
    discount: Discount | None = None,
    per_step: bool = False,
    latest: bool = False,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """A server that steps when its timetable says, by the changes that have arrived.

        y_i = K_i local steps from x^v_i                   the model after the server's first v_i steps
        x = server_optimizer(x, -sum_i d_i s(u_i) (y_i - x^v_i))      over the arrivals i of a step

    d_i is the arrival's weight in the timetable and u_i its staleness. FedAvg, asynchronous FedAvg,
    FedFix, FedBuff, FedAsync, FedCompass and anarchic federated learning are timetables of it. The
    timetable is data: join it with a federation, `dflax.asynchronous.join`, and run as many rounds as
    its `waves` are. A round trains the clients of one wave together and takes the wave's steps one
    after another.

    A message that a channel loses is left out of its step, whatever it holds, and a step without any
    leaves the server. A NaN that arrives is applied: `dflax.channel.finite_only` drops it.
    The server keeps S models, one for each that somebody works on, on every device.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every piece of work; or a function of the
        round's number that returns one.
      timetable: or its `waves`; static. The federation's must be the same one.
      server_optimizer: default `optax.sgd(1.0)`, which adds the changes.
      discount: s, from `[m]` int32 staleness to `[m]` factors, see `dflax.asynchronous.polynomial`;
        default none.
      per_step: divide every change by its number of local steps.
      latest: step along the weighted sum of all clients' latest changes, those of clients that have
        not arrived yet being 0. The memory of a client is its last change.
      channel: of the changes; default perfect.
      at_once: see `dflax.map_clients`. Clients at the same time take as many gradients as the one of
        them with the most steps could; with 1 none is taken in vain, however different their steps.
        With 1, a perfect channel and one step of the server a wave, changes are added up as they come,
        and a device holds one of them.

    Returns:
      An `Algorithm` on a `FederatedState`; the model is `state.server.params`. Metrics: the loss's own,
      `time` in seconds at the end of the round, `server_steps`, `contributors`, `staleness` (mean over
      them), `largest_staleness`, and those of the channel.

    Raises:
      TypeError, ValueError: naming the argument.

    Warns:
      dflax.models.AveragedStatistics: from `init`, a model with "batch_stats".

    References:
      Fraboni et al., A General Theory for Federated Optimization with Asynchronous and Heterogeneous
      Clients Updates, arXiv 2206.10189.
    """
    cut = waves(timetable) if isinstance(timetable, Timetable) else timetable
    validation.instance("timetable", cut, Waves, "Make one with dflax.asynchronous.fedfix.")
    made = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    fix = "An optax transformation, for example optax.sgd(1.0)."
    validation.instance("server_optimizer", made, optax.GradientTransformation, fix)
    if discount is not None:
        validation.function("discount", discount, "See dflax.asynchronous.polynomial.", takes=1)
    validation.flag("per_step", per_step)
    validation.flag("latest", latest)
    if latest and cut.keeps:
        raise ValueError("latest must be False with a timetable that keeps changes for later.")
    each_is_wanted = channel is not None or latest or cut.keeps
    channel = perfect() if channel is None else channel
    validation.instance("channel", channel, Channel, "For example dflax.channel.finite_only().")
    validation.at_once(at_once)
    population, remembers = cut.timetable.population, latest or cut.keeps
    # Then a step is a sum whose factors are known before.
    in_turn = at_once == 1 and cut.most_steps == 1 and not each_is_wanted

    def init(key: Key[Array, ""], params: Params) -> FederatedState:
        validation.typed_key("key", key)
        validation.model("params", params)
        warn_of_averaging(params)
        nothing = jax.tree.map(jnp.zeros_like, params)
        kept = replicate(nothing, population) if remembers else ()
        sending = channel.init(params)
        sending = replicate(sending, population) if jax.tree.leaves(sending) else sending
        began = made.init(params), (nothing if latest else ())
        server = AsyncServer(params, Working(replicate(params, cut.slots), began))
        return FederatedState(jnp.int32(0), server, AsyncClients(kept, sending))

    work = _piece_of_work(solver(loss, optimizer), per_step)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        event, (server, clients) = round.event, (state.server, state.clients)
        _require_event(event, cut, round)
        reports = everywhere((round.weights > 0).astype(jnp.float32))
        trained = (reports > 0) & ~event["kept"]
        shared = (server.memory.models, round.data, round.number)

        def factors(counted: Array) -> Array:
            factor = event["weight"] * jnp.where(counted, 1.0, 0.0)
            return factor if discount is None else factor * discount(event["staleness"])

        if in_turn:
            summed, measured = sum_cohort(
                lambda own, there, *given: if_there(work, there, *given),
                factors(trained),
                (),
                None,
                trained,
                round.assignments,
                event["start"],
                shared=shared,
            )
            happened, write = trained.any(), event["write"][0]
            server = _moved(made, latest, server, summed, happened, write)
            kept, sending, counted = clients.kept, clients.channel, trained
            sent: Metrics = {}
        else:
            made_now, measured = map_present(
                work,
                trained,
                round.assignments,
                event["start"],
                shared=shared,
                chunk=cut.chunk,
                at_once=at_once,
            )
            channel_key, _ = jax.random.split(round.key)
            changes, weights, sending, sent = sent_through(
                channel,
                made_now,
                jnp.where(trained, 1.0, 0.0),
                gather(clients.channel, round.cohort),
                Sending(channel_key, round.number, round.members, round.clients),
            )
            sending = scatter(clients.channel, round.cohort, sending, trained)
            arrived = everywhere(weights) > 0
            counted = (arrived | event["kept"]) & (reports > 0) & ~event["later"]
            kept = clients.kept
            if remembers:
                kept, changes = _remembered(kept, round, changes, arrived, latest)
            server = _stepped(made, cut, latest, server, changes, factors(counted), counted, event)
        metrics = _measured(event, counted)
        own_metrics = mean_metrics(measured, jnp.where(trained, 1.0, 0.0))
        parts = disjoint(**{"the clients' work": own_metrics, "time": metrics, "channel": sent})
        return FederatedState(state.round + 1, server, AsyncClients(kept, sending)), parts

    return Algorithm(init, step)


def _piece_of_work(solve: Callable[..., Solution], per_step: bool) -> Callable[..., Any]:
    """What a client does: its change from the model it started from, and what it measured."""

    def work(
        assignment: Assignment,
        start: Int[Array, ""],
        models: PyTree[Array],
        data: Dataset,
        index: Int[Array, ""],
    ) -> tuple[Params, Metrics]:
        params = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, start, 0, False), models
        )
        solution = solve(Subproblem(), params, assignment, data, index=index)
        change = jax.tree.map(jnp.subtract, solution.params, params)
        if per_step:
            share = 1.0 / jnp.maximum(assignment.local_steps, 1)
            change = jax.tree.map(lambda leaf: (share * leaf).astype(leaf.dtype), change)
        return change, solution.metrics

    return work


def _remembered(
    kept: PyTree[Array], round: Round, changes: PyTree[Array], arrived: Array, latest: bool
) -> tuple[PyTree[Array], PyTree[Array]]:
    """What clients keep now, and what the server applies: differences, or what was kept before."""
    own, event = gather(kept, round.cohort), round.event
    after = scatter(kept, round.cohort, changes, arrived & (latest | event["later"]))
    if latest:
        return after, jax.tree.map(jnp.subtract, changes, own)
    return after, _where(event["kept"], own, changes)


def _measured(event: dict[str, Array], counted: Bool[Array, " m"]) -> Metrics:
    stale = jnp.where(counted, event["staleness"], 0)
    return {
        "time": event["time"],
        "server_steps": event["steps_taken"],
        "contributors": counted.sum(),
        "staleness": stale.sum() / counted.sum(),
        "largest_staleness": stale.max(),
    }


def _where(chosen: Array, one: PyTree[Array], other: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda a, b: jnp.where(against(chosen, a), a, b), one, other)


def _stepped(
    optimizer: optax.GradientTransformation,
    cut: Waves,
    latest: bool,
    server: AsyncServer,
    changes: PyTree[Array],
    factor: Float[Array, " m"],
    counted: Array,
    event: dict[str, Array],
) -> AsyncServer:
    """The server after the steps of a wave, each over its own arrivals, which lie side by side."""
    # A window of places that are dealt over devices would bring all of them to each.
    room = cut.width if client_devices() > 1 else cut.most_arrivals

    def one(server: AsyncServer, taken: tuple[Array, Array, Array]) -> tuple[AsyncServer, None]:
        first, count, write = taken
        # A window that lies within the wave, and which of its places are of this step.
        begin = jnp.minimum(first, cut.width - room)
        place = begin + jnp.arange(room)
        here = (place >= first) & (place < first + count)

        def window(leaf: Array) -> Array:
            whole = room == cut.width
            return leaf if whole else jax.lax.dynamic_slice_in_dim(leaf, begin, room)

        there = here & window(counted)
        share = jnp.where(there, window(factor), 0.0)

        summed = _summed(jax.tree.map(window, changes), share, there)
        return _moved(optimizer, latest, server, summed, there.any(), write), None

    steps = (event["first"], event["count"], event["write"])
    if cut.most_steps == 1:
        return one(server, jax.tree.map(lambda column: column[0], steps))[0]
    return jax.lax.scan(one, server, steps)[0]


def _moved(
    optimizer: optax.GradientTransformation,
    latest: bool,
    server: AsyncServer,
    summed: PyTree[Array],
    happened: Bool[Array, ""],
    write: Int[Array, ""],
) -> AsyncServer:
    """The server after a step along the changes' sum; as it was where none arrived."""
    state, total = server.memory.optimizer
    if latest:
        total = jax.tree.map(jnp.add, total, summed)
        summed = total
    slope = jax.tree.map(lambda leaf, like: -leaf.astype(like.dtype), summed, server.params)
    updates, moved = optimizer.update(slope, state, server.params)
    params = optax.apply_updates(server.params, updates)
    params, moved = jax.tree.map(
        lambda new, old: jnp.where(happened, new, old), (params, moved), (server.params, state)
    )
    models = jax.tree.map(
        lambda leaf, new: leaf.at[write].set(new, mode="drop"), server.memory.models, params
    )
    return AsyncServer(params, Working(models, (moved, total)))


def _summed(
    changes: PyTree[Array], share: Float[Array, " r"], there: Bool[Array, " r"]
) -> PyTree[Array]:
    """The sum of those that are there, whatever the others hold."""
    if len(share) > IN_ONE_PASS or client_devices() > 1:
        return counted_sum(changes, share, there)

    def total(leaf: Array) -> Array:
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        parts = [
            jnp.where(counts, factor.astype(wide) * row, 0)
            for counts, factor, row in zip(there, share, leaf, strict=True)
        ]
        return functools.reduce(jnp.add, parts).astype(leaf.dtype)

    return jax.tree.map(total, changes)


def _require_event(event: Any, cut: Waves, round: Round) -> None:
    given: Any = "none"
    if isinstance(event, dict) and "room" in event:
        given = event["room"].shape[:-1]
    if given == cut.room and round.clients == cut.timetable.population:
        return
    raise ValueError(
        "the federation must be joined with the algorithm's own timetable, with room for places, steps, "
        f"arrivals of a step, models and kept changes {cut.room}, got {given}. Say "
        "dflax.asynchronous.join(federation, timetable); see `alike` for several timetables."
    )
