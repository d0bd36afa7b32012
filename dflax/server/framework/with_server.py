"""A round with a server, from what a paper states: the start, a client's work, the server's update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree

from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel, sent_through
from dflax.channel.compression import numbers
from dflax.clients import everywhere, gather, scatter, select
from dflax.data.dataset import Dataset
from dflax.metrics import disjoint
from dflax.population import Round
from dflax.server.framework.exchange import conclusion, hearing, unless
from dflax.server.framework.method import stated
from dflax.server.framework.protocol import Arrived, Clients, Received, Report, Server
from dflax.server.framework.stages import (
    Keys,
    begun,
    in_hand,
    members_of,
    remembered,
    require_rows,
    rested,
    sending,
    worked,
)


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

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> work = dx.server.local_change(dx.data.quadratic_loss, optax.sgd(0.5))
      >>> start, update = dx.server.descent(optax.sgd(1.0))
      >>> algorithm = dx.server.with_server(start, work, update)  # FedAvg
      >>> state = algorithm.init(jax.random.key(0), jnp.zeros(3))
      >>> state, history = dx.run(algorithm, state, federation, rounds=20, key=jax.random.key(1))
      >>> bool(jnp.allclose(state.server.params, problem.optimum, atol=1e-3))
      True
    """
    method = stated(
        aggregator,
        channel,
        start=start,
        work=work,
        update=update,
        message=message,
        assign=assign,
        publish=publish,
        read=read,
        receive=receive,
        answer=answer,
        rest=rest,
        downlink=downlink,
        kinds=kinds,
        clients=clients,
        equal=equal,
        at_once=at_once,
    )

    def init(key: Key[Array, ""], params: Params, *given: Any) -> FederatedState:
        return begun(method, key, params, given)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        before, carried = state.clients, state.server
        require_rows(before, round)
        round = round._replace(weights=everywhere(round.weights))
        keys = Keys(*jax.random.split(round.key, len(Keys._fields)))
        invited = (round.weights > 0).astype(jnp.float32)
        heard, measured_down = hearing(
            publish, method.downlink, carried, invited, sending(round, keys.downlink)
        )
        members = members_of(method, state, round)
        reports: Any = worked(method, state, round, members, heard, keys.assign)
        messages, weights, sent_memory, measured_up = sent_through(
            method.channel,
            reports.message,
            invited if equal else round.weights,
            gather(before.channel, round.cohort),
            sending(round, keys.channel),
        )
        # Every device counts for itself: totals of weights dealt over devices would each be an exchange.
        weights = everywhere(weights)
        arrived = Arrived(messages, reports.kinds)
        received, combining, measured = in_hand(
            method, state, round, members, reports, arrived, weights, keys
        )
        params, memory, updated = conclusion(update(carried, received), carried)
        happened = received.reporting > 0
        server = select(happened, Server(params, memory, combining), carried)
        told, measured_reply = remembered(
            method, reports, arrived, server, round, invited, keys.reply
        )
        # What is told in turn is decided already.
        takes = None if method.in_turn and round.cohort is None else weights
        after = Clients(
            scatter(rested(method, before.memory, round), round.cohort, told, takes),
            scatter(before.channel, round.cohort, sent_memory, round.weights),
        )
        totals = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), reports.totals)
        parts = {"the clients' work": received.metrics, "totals": totals, "aggregator": measured}
        if publish is not None:
            # Both broadcasts together, where there are two.
            down = {k: v + measured_reply.get(k, 0.0) for k, v in measured_down.items()}
            up = invited.sum() * numbers(jax.eval_shape(message, carried.params))
            parts["downlink"] = {"numbers_up": up} | down
        parts["channel"] = measured_up
        parts["update"] = jax.tree.map(lambda leaf: unless(happened, leaf), updated)
        return FederatedState(state.round + 1, server, after), disjoint(**parts)

    return Algorithm(init, step)
