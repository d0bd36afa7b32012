"""A round with a server, from what a paper states: the start, a client's work, the server's update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import returned, validation
from dflax.aggregation.aggregator import Aggregator, Combining, mean
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.broadcast import without_memory
from dflax.channel.channel import Channel, Sending, perfect, sent_through
from dflax.channel.compression import numbers
from dflax.clients import (
    everywhere,
    gather,
    map_clients,
    map_cohort,
    mean_metrics,
    replicate,
    scatter,
    select,
)
from dflax.data.dataset import Dataset
from dflax.metrics import disjoint
from dflax.models.averaged import warn_of_averaging
from dflax.population import Round
from dflax.server.framework.exchange import (
    cleared,
    combined,
    conclusion,
    hearing,
    reported,
    unless,
)
from dflax.server.framework.protocol import Arrived, Clients, Received, Report, Server

# What keeps running statistics from being averaged at a server.
LOCAL = ("keep them local (dflax.server.partial_averaging, local=normalization)",)
# How many arguments each function of a method gets; `start` gets what a user passes to `init`, too.
TAKES = {
    "work": 5,
    "update": 2,
    "message": 1,
    "assign": 2,
    "publish": 1,
    "read": 2,
    "receive": 4,
    "answer": 1,
    "rest": 2,
}


class Keys(NamedTuple):
    """A round's keys, by what they are for, in the order of the split: another order, another run."""

    channel: Key[Array, ""]
    aggregator: Key[Array, ""]
    server: Key[Array, ""]
    assign: Key[Array, ""]
    downlink: Key[Array, ""]
    reply: Key[Array, ""]


def with_server(
    start: Callable[..., tuple[Any, Any]],
    work: Callable[[Any, Any, Any, Dataset, Int[Array, ""]], Report],
    update: Callable[[Server, Received], tuple[Params, Any, Metrics]],
    *,
    aggregator: Aggregator | None = None,
    message: Callable[[Params], PyTree[Array]] = lambda params: params,
    channel: Channel | None = None,
    clients: int | None = None,
    equal: bool = False,
    at_once: int | None = None,
    kinds: tuple[str, ...] = (),
    assign: Callable[[Round, Key[Array, ""]], PyTree[Array]] | None = None,
    publish: Callable[[Server], tuple[PyTree[Array], Bool[Array, ""]]] | None = None,
    downlink: Channel | None = None,
    read: Callable[[Any, Arrived], PyTree[Array]] | None = None,
    receive: Callable[[Any, Arrived, Any, Int[Array, ""]], Any] | None = None,
    answer: Callable[[Server], tuple[PyTree[Array], Bool[Array, ""]]] | None = None,
    rest: Callable[[Any, Round], Any] | None = None,
) -> Algorithm:
    """The algorithm of a method that states what its clients and its server do.

    A round, for a cohort S with weights w_i:

        message_i, memory_i = work(assignment_i, memory_i, server)       i in S, in parallel
        message = aggregator(channel(message_i), w_i)
        server  = update(server, message)

    and, for methods that need more, in this order:

        task_i     = assign(round)                         in place of the assignment
        heard_i    = downlink(publish(server))             in place of the server
        message    = aggregator(read(memory_i, channel(message_i)), w_i)
        memory_i   = receive(memory_i, channel(message_i), the new server)       or downlink(answer)
        memory_j   = rest(memories, round)_j               all clients j that take no part

    This is the one place that decides what absence, loss and channels mean:

    - A client takes part if it is invited, has a positive weight, and its message arrives.
    - Whoever takes no part keeps its memory bit for bit, or rests where the method says so. A client
      whose message is lost forgets what it did in this round.
    - The memory of a channel is the sender's: it is written by all who send, lost or not.
    - A round in which no message arrives leaves the server, bit for bit. Only `state.round` counts on.
    - Metrics that are means over clients are NaN if there are none, and so is what `update` measures
      in a round that leaves the server. Counts are 0 then.
    - All that channels, aggregators and updates measure is handed on. What a downlink measures gets
      the prefix "downlink_" (of two broadcasts in a round the sum), what an aggregator measures of one
      kind of message the kind's name.

    Args:
      start: `(key, params, *given) -> (server_memory, client_memory)`: the method's own memories,
        the latter with leaves `[n, ...]` or (). `given` is what a user passes to `init` after the
        model.
      work: `(assignment, memory, server, data, index) -> Report` for one client; `memory` its own row.
      update: `(server, received) -> (params, server_memory, metrics)`.
      aggregator: default the weighted mean.
      message: from the model to a message of the same shapes; default the model itself. Only shapes
        are read, by the aggregator and the channel.
      channel: between clients and server; default perfect. One with memory needs `clients`.
      clients: n, the number of clients of the federation; needed where clients remember something.
      equal: count every reporting client the same, whatever the federation's weights: for methods
        whose memories are plain means over clients.
      at_once: see `dflax.map_clients`.
      kinds: names of the kinds of messages, where `Report.kinds` says of which kind each is. A metric of
        each name counts those that arrived.
      assign: `(round, key) -> tasks` with leaves `[m, ...]`, for work that needs more of the round than
        its assignments: large batches, roles.
      publish: `server -> (message, whether there is anything to send)`, for methods whose server sends
        over a link of its own. `work` gets a `Heard` in place of the server. Metrics: `numbers_up` and
        `numbers_down`, how many numbers travelled.
      downlink: from the server to each client, independently; without memory; default perfect. It
        needs `publish`.
      read: `(memory, arrived) -> message`: what the server makes of each message before they are
        combined, for servers that know what each client sent last.
      receive: `(memory, arrived, server, index) -> memory`, after the update, for the clients whose
        message arrived: the memory of their report, their own message as it `Arrived`, and the new
        `Server`.
      answer: as `publish`, but of the new server; `receive` gets a `Heard` in the server's place.
      rest: `(memories, round) -> memories` with leaves `[n, ...]`, what clients do on their own; kept of
        those that take no part.

    Returns:
      An `Algorithm` on `FederatedState(round, Server, Clients)`; the model is `state.server.params`.
      Metrics: the clients' own, `clients_reporting`, and those of channel, aggregator and update.

    Raises:
      TypeError, ValueError: naming the argument, or, from `init` and `step`, what a function returned
        that does not fit. Exceptions of the functions themselves pass as they are.

    Warns:
      dflax.models.AveragedStatistics: from `init`, messages with "batch_stats" in them.
    """
    stated: dict[str, Any] = {"start": start, "work": work, "update": update, "message": message}
    asked: dict[str, Any] = {"assign": assign, "publish": publish, "read": read, "receive": receive}
    asked |= {"answer": answer, "rest": rest}
    for name, given in (stated | {k: v for k, v in asked.items() if v is not None}).items():
        validation.function(name, given, takes=TAKES.get(name))
    for place, kind in enumerate(validation.sequence("kinds", kinds, "names", least=0)):
        validation.text(f"kinds[{place}]", kind)
    aggregator = mean() if aggregator is None else aggregator
    channel = perfect() if channel is None else channel
    validation.instance(
        "aggregator", aggregator, Aggregator, "For example dflax.aggregation.mean()."
    )
    validation.instance("channel", channel, Channel, "For example dflax.channel.finite_only().")
    validation.flag("equal", equal)
    if clients is not None:
        validation.integer("clients", clients, low=1)
    validation.at_once(at_once)
    for name in ("publish", "receive"):
        if answer is not None and asked[name] is None:
            raise ValueError(f"{name} must be given with an answer, got None.")
    if downlink is not None and publish is None:
        raise ValueError(
            "publish must be given with a downlink, to say what is sent over it, got None and "
            f"downlink={validation.shown(downlink)}."
        )
    downlink = without_memory("downlink", downlink)

    def init(key: Key[Array, ""], params: Params, *given: Any) -> FederatedState:
        validation.typed_key("key", key)
        validation.model("params", params)
        started = start(key, params, *given)
        named = ("server_memory", "client_memory")
        server_memory, client_memory = returned.parts("start", started, named)
        if jax.tree.leaves(client_memory):
            validation.leading_axis("the clients' memory", client_memory, clients)
        one = message(params)
        memory = channel.init(one)
        if jax.tree.leaves(memory):
            if clients is None:
                raise ValueError(
                    "clients must be given, the number of clients of the federation, because the "
                    "channel keeps a memory for each of them; got None."
                )
            memory = replicate(memory, clients)
        warn_of_averaging(one, remedies=LOCAL)
        combining = {name: aggregator.init(one) for name in kinds} or aggregator.init(one)
        server = Server(params, server_memory, combining)
        return FederatedState(jnp.int32(0), server, Clients(client_memory, memory))

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        before, carried = state.clients, state.server
        round = round._replace(weights=everywhere(round.weights))
        for name, rows in (
            ("the clients' memory", before.memory),
            ("the channel's memory", before.channel),
        ):
            if jax.tree.leaves(rows):
                validation.leading_axis(name, rows, round.clients)
        keys = Keys(*jax.random.split(round.key, len(Keys._fields)))
        invited = (round.weights > 0).astype(jnp.float32)
        one_message = jax.eval_shape(message, carried.params)
        tasks = round.assignments if assign is None else assign(round, keys.assign)
        heard, measured_down = hearing(
            publish, downlink, carried, invited, sending(round, keys.downlink)
        )

        def local(
            own: Any,
            task: Any,
            weight: Array,
            heard: Any,
            server: Server,
            data: Dataset,
            index: Array,
        ) -> Report:
            report = work(task, own, server if publish is None else heard, data, index)
            return cleared(reported(report, own, one_message, kinds), task, weight)

        reports = map_cohort(
            local,
            before.memory,
            round.cohort,
            tasks,
            round.weights,
            heard,
            shared=(carried, round.data, round.number),
            at_once=at_once,
        )
        messages, weights, sent_memory, measured_up = sent_through(
            channel,
            reports.message,
            invited if equal else round.weights,
            gather(before.channel, round.cohort),
            sending(round, keys.channel),
        )
        # Every device counts for itself: totals of weights dealt over devices would each be an exchange.
        weights = everywhere(weights)
        arrived = Arrived(messages, reports.kinds)
        received, combining, measured = in_hand(state, round, reports, arrived, weights, keys)
        params, memory, updated = conclusion(update(carried, received), carried)
        happened = received.reporting > 0
        server = select(happened, Server(params, memory, combining), carried)
        told, measured_reply = remembered(reports, arrived, server, round, invited, keys)
        clients = Clients(
            scatter(others(before.memory, round), round.cohort, told, weights),
            scatter(before.channel, round.cohort, sent_memory, round.weights),
        )
        totals = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), reports.totals)
        parts = {"the clients' work": received.metrics, "totals": totals, "aggregator": measured}
        if publish is not None:
            # Both broadcasts together, where there are two.
            down = {k: v + measured_reply.get(k, 0.0) for k, v in measured_down.items()}
            parts["downlink"] = {"numbers_up": invited.sum() * numbers(one_message)} | down
        parts["channel"] = measured_up
        parts["update"] = jax.tree.map(lambda leaf: unless(happened, leaf), updated)
        return FederatedState(state.round + 1, server, clients), disjoint(**parts)

    def in_hand(
        state: FederatedState,
        round: Round,
        reports: Report,
        arrived: Arrived,
        weights: Float[Array, " m"],
        keys: Keys,
    ) -> tuple[Received, Any, Metrics]:
        """What the server makes of what arrived, the aggregator's state, and counts and metrics."""
        contributions, of_kind = arrived.message, arrived.kinds
        measuring: Any = reports.measured
        if read is not None:
            rows = gather(state.clients.memory, round.cohort)
            contributions = map_clients(read, rows, arrived, at_once=at_once)
            returned.alike(
                "what read returns", contributions, arrived.message, "messages", dtypes=False
            )
            nothing = jax.tree.map(jnp.zeros_like, contributions)
            contributions = select(weights > 0, contributions, nothing)
        one, combining, measured = combined(
            aggregator,
            contributions,
            weights,
            of_kind,
            state.server.aggregator,
            Combining(
                keys.aggregator, round.number, round.members, round.clients, state.server.params
            ),
        )
        present = {"": weights > 0} | {k: (weights > 0) & of_kind[k] for k in kinds}
        # From the count, so that it is as precise as the run: memories telescope by it.
        shares = {name: jnp.sum(there) / round.clients for name, there in present.items()}
        counts = {name: jnp.sum(there).astype(jnp.float32) for name, there in present.items()}
        reporting, share = counts.pop(""), shares.pop("")
        metrics = mean_metrics(reports.metrics, jnp.where(measuring, weights, 0))
        received = Received(
            one,
            reporting,
            shares if kinds else share,
            round.number,
            keys.server,
            metrics,
            round.event,
        )
        return received, combining, {"clients_reporting": reporting} | counts | measured

    def remembered(
        reports: Report,
        arrived: Arrived,
        server: Server,
        round: Round,
        invited: Float[Array, " m"],
        keys: Keys,
    ) -> tuple[Any, Metrics]:
        """What the cohort remembers after the update, and what the second broadcast measured."""
        if receive is None:
            return reports.memory, {}
        heard, measured = hearing(answer, downlink, server, invited, sending(round, keys.reply))

        def one(memory: Any, arrived: Arrived, heard: Any, server: Server, index: Array) -> Any:
            told = receive(memory, arrived, server if answer is None else heard, index)
            returned.alike("the memory that receive returns", told, memory, "the one it got")
            return told

        shared = (server, round.number)
        told = map_clients(one, reports.memory, arrived, heard, shared=shared, at_once=at_once)
        return told, measured

    def others(memory: Any, round: Round) -> Any:
        """What all clients remember who take no part."""
        if rest is None:
            return memory
        rested = rest(memory, round)
        returned.alike("the memory that rest returns", rested, memory, "the one it got")
        return rested

    return Algorithm(init, step)


def sending(round: Round, key: Key[Array, ""]) -> Sending:
    """One sending between the cohort and the server."""
    return Sending(key, round.number, round.members, round.clients)
