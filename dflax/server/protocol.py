"""A round with a server, from what a paper states: the start, a client's work, the server's update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, mean
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel, perfect
from dflax.clients import gather, map_cohort, mean_metrics, replicate, scatter, select
from dflax.data.dataset import Dataset
from dflax.federation import Assignment, Round
from dflax.models.averaged import warn_of_averaging

# What keeps running statistics from being averaged at a server.
LOCAL = ("keep them local (dflax.server.partial_averaging, local=normalization)",)


class Server(NamedTuple):
    """What the server carries.

    Attributes:
      params: the global model.
      memory: the method's own: momentum, control variates, an optimiser's state; () for none.
      aggregator: state of the aggregator.
    """

    params: Params
    memory: Any = ()
    aggregator: PyTree[Array] = ()


class Clients(NamedTuple):
    """What the n clients carry.

    Attributes:
      memory: the method's own, leaves `[n, ...]`: duals, control variates, local layers; () for none.
      channel: the channel's memory, leaves `[n, ...]`, often none.
    """

    memory: Any = ()
    channel: PyTree[Array] = ()


class Report(NamedTuple):
    """What comes out of one client's local work.

    Attributes:
      message: what is sent to the server; a change or a sum, so that 0 says nothing.
      memory: what the client remembers, of the structure it got; () for none.
      metrics: what it measured; averaged over reporting clients.
    """

    message: PyTree[Array]
    memory: Any
    metrics: Metrics


class Received(NamedTuple):
    """What the server has in hand at the end of a round.

    Attributes:
      message: the combined messages, one message.
      reporting: `[]` number of clients whose message arrived, float32.
      share: `[]` the same divided by n: `share * mean over them` is the mean over all n clients of
        something that is 0 for those who are absent.
      number: `[]` int32 number of the round.
      key: a typed key of the round for the server's own draws.
      metrics: what the clients measured, the mean over those who report.
    """

    message: PyTree[Array]
    reporting: Float[Array, ""]
    share: Float[Array, ""]
    number: Int[Array, ""]
    key: Key[Array, ""]
    metrics: Metrics


def with_server(
    start: Callable[..., tuple[Any, Any]],
    work: Callable[[Assignment, Any, Server, Dataset, Int[Array, ""]], Report],
    update: Callable[[Server, Received], tuple[Params, Any, Metrics]],
    *,
    aggregator: Aggregator | None = None,
    message: Callable[[Params], PyTree[Array]] = lambda params: params,
    channel: Channel | None = None,
    clients: int | None = None,
    equal: bool = False,
    at_once: int | None = None,
) -> Algorithm:
    """The algorithm of a method that states what its clients and its server do.

    A round, for a cohort S with weights w_i:

        message_i, memory_i = work(assignment_i, memory_i, server)       i in S, in parallel
        message = aggregator(channel(message_i), w_i)
        server  = update(server, message)

    Whoever does not report, or whose message is lost, keeps its memory bit for bit and does not
    count; a round in which no message arrives leaves the server as it was. Everything else of a
    round (cohorts, meshes, channels' memories, metrics) is done here, once for all methods.

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

    Returns:
      An `Algorithm` on `FederatedState(round, Server, Clients)`; the model is `state.server.params`.
      Metrics: the clients' own, `clients_reporting`, and those of channel, aggregator and update.

    Raises:
      TypeError, ValueError: naming the argument.

    Warns:
      dflax.models.AveragedStatistics: from `init`, messages with "batch_stats" in them.
    """
    aggregator = mean() if aggregator is None else aggregator
    channel = perfect() if channel is None else channel
    validation.instance(
        "aggregator", aggregator, Aggregator, "For example dflax.aggregation.mean()."
    )
    validation.instance("channel", channel, Channel, "For example dflax.channel.finite_only().")
    validation.flag("equal", equal)
    if clients is not None:
        validation.integer("clients", clients, low=1)
    if at_once is not None:
        validation.integer("at_once", at_once, low=1)

    def init(key: Key[Array, ""], params: Params, *given: Any) -> FederatedState:
        validation.typed_key("key", key)
        validation.model("params", params)
        server_memory, client_memory = start(key, params, *given)
        if jax.tree.leaves(client_memory) and clients is not None:
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
        server = Server(params, server_memory, aggregator.init(one))
        return FederatedState(jnp.int32(0), server, Clients(client_memory, memory))

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        for name, memory in (
            ("clients'", state.clients.memory),
            ("channel's", state.clients.channel),
        ):
            if jax.tree.leaves(memory):
                validation.leading_axis(f"the {name} memory", memory, round.clients)
        channel_key, aggregator_key, server_key = jax.random.split(round.key, 3)

        def one(
            memory: Any,
            assignment: Assignment,
            weight: Array,
            server: Server,
            data: Dataset,
            index: Array,
        ) -> Report:
            report = work(assignment, memory, server, data, index)
            # Who does not count sends zeros: in a mean, 0 times NaN would be NaN.
            sent = jax.tree.map(lambda leaf: jnp.where(weight > 0, leaf, 0), report.message)
            return report._replace(message=sent)

        reports = map_cohort(
            one,
            state.clients.memory,
            round.cohort,
            round.assignments,
            round.weights,
            shared=(state.server, round.data, round.number),
            at_once=at_once,
        )
        weights = (round.weights > 0).astype(jnp.float32) if equal else round.weights
        messages, weights, sent_memory, sent = channel.apply(
            reports.message, weights, gather(state.clients.channel, round.cohort), channel_key
        )
        kept = Clients(
            scatter(state.clients.memory, round.cohort, reports.memory, weights),
            scatter(state.clients.channel, round.cohort, sent_memory, round.weights),
        )
        worked = jnp.where(round.assignments.local_steps > 0, weights, 0)
        metrics = mean_metrics(reports.metrics, worked)
        arrived, aggregator_state, combined = aggregator.apply(
            messages, weights, state.server.aggregator, aggregator_key
        )
        reporting = jnp.sum(weights > 0).astype(jnp.float32)
        # From the count, so that it is as precise as the run: memories telescope by it.
        share = jnp.sum(weights > 0) / round.clients
        received = Received(arrived, reporting, share, round.number, server_key, metrics)
        params, server_memory, updated = update(state.server, received)
        server = select(
            reporting > 0, Server(params, server_memory, aggregator_state), state.server
        )
        metrics |= {"clients_reporting": reporting}
        return (
            FederatedState(state.round + 1, server, kept),
            metrics | sent | combined | updated,
        )

    return Algorithm(init, step)
