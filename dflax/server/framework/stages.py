"""The stages of a round with a server, in the order in which they happen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import returned, validation
from dflax.aggregation.aggregator import Combining
from dflax.algorithm import FederatedState, Metrics, Params
from dflax.channel.channel import Sending
from dflax.clients import (
    gather,
    map_clients,
    map_cohort,
    mean_metrics,
    platform,
    replicate,
    select,
    sum_cohort,
)
from dflax.data.dataset import Dataset
from dflax.models.averaged import warn_of_averaging
from dflax.population import Round
from dflax.server.framework.exchange import cleared, combined, hearing, reported
from dflax.server.framework.method import Method
from dflax.server.framework.protocol import Arrived, Clients, Received, Report, Server

# What keeps running statistics from being averaged at a server.
LOCAL = ("keep them local (dflax.server.partial_averaging, local=normalization)",)


class Keys(NamedTuple):
    """A round's keys, by what they are for, in the order of the split: another order, another run."""

    channel: Key[Array, ""]
    aggregator: Key[Array, ""]
    server: Key[Array, ""]
    assign: Key[Array, ""]
    downlink: Key[Array, ""]
    reply: Key[Array, ""]


def begun(
    method: Method, key: Key[Array, ""], params: Params, given: tuple[Any, ...]
) -> FederatedState:
    """The state before the first round."""
    validation.typed_key("key", key)
    validation.model("params", params)
    started = method.start(key, params, *given)
    named = ("server_memory", "client_memory")
    server_memory, client_memory = returned.parts("start", started, named)
    if jax.tree.leaves(client_memory):
        validation.leading_axis("the clients' memory", client_memory, method.clients)
    one = method.message(params)
    memory = method.channel.init(one)
    if jax.tree.leaves(memory):
        if method.clients is None:
            raise ValueError(
                "clients must be given, the number of clients of the federation, because the "
                "channel keeps a memory for each of them; got None."
            )
        memory = replicate(memory, method.clients)
    # Whoever calls `init`, which calls this.
    warn_of_averaging(one, remedies=LOCAL, stacklevel=4)
    combine = method.aggregator
    combining = {name: combine.init(one) for name in method.kinds} or combine.init(one)
    server = Server(params, server_memory, combining)
    return FederatedState(jnp.int32(0), server, Clients(client_memory, memory))


def require_rows(clients: Clients, round: Round) -> None:
    """Refuses a round of another federation than the memories are of."""
    rows = {"the clients' memory": clients.memory, "the channel's memory": clients.channel}
    for name, held in rows.items():
        if jax.tree.leaves(held):
            validation.leading_axis(name, held, round.clients)


class Members(NamedTuple):
    """What the cohort remembers before the round.

    Attributes:
      memory: all clients' memories, leaves `[n, ...]`, or the cohort's, taken out of them.
      cohort: `[m]` who of them it is; None: all in order.
    """

    memory: Any
    cohort: Int[Array, " m"] | None


def members_of(method: Method, state: FederatedState, round: Round) -> Members:
    """The cohort's memories: where they lie, or taken out where the server reads the old ones as well.

    Read a second time where they lie, all n would be copied before the new ones are written.
    """
    if method.read is None:
        return Members(state.clients.memory, round.cohort)
    return Members(gather(state.clients.memory, round.cohort), None)


def worked(
    method: Method,
    state: FederatedState,
    round: Round,
    members: Members,
    heard: Any,
    key: Key[Array, ""],
) -> Report:
    """What the cohort's local work reports, leaves `[m, ...]`; the message alone is one, if in turn."""
    one = jax.eval_shape(method.message, state.server.params)
    tasks = round.assignments if method.assign is None else method.assign(round, key)

    def local(
        own: Any, task: Any, weight: Array, heard: Any, server: Server, data: Dataset, index: Array
    ) -> Report:
        seen = server if method.publish is None else heard
        report = method.work(task, own, seen, data, index)
        return cleared(reported(report, own, one, method.kinds), task, weight)

    rows = (*members, tasks, round.weights, heard)
    shared = (state.server, round.data, round.number)
    if not method.in_turn:
        return map_cohort(local, *rows, shared=shared, at_once=method.at_once)

    def apart(own: Any, task: Any, weight: Array, *given: Any) -> tuple[PyTree[Array], Report]:
        report = local(own, task, weight, *given)
        # Whoever does not report is known, and keeps its memory here: no old one lies beside a new one.
        kept = select(weight > 0, report.memory, own)
        return report.message, report._replace(message=(), memory=kept)

    weights = (round.weights > 0).astype(jnp.float32) if method.equal else round.weights
    # Shares of a third rounded to float32 would spoil a mean of float64.
    wide = jnp.result_type(weights.dtype, jnp.float32, *jax.tree.leaves(one))
    coefficients = method.aggregator.linear(weights.astype(wide))
    message, reports = sum_cohort(apart, coefficients, *rows, shared=shared)
    return reports._replace(message=message)


def in_hand(
    method: Method,
    state: FederatedState,
    round: Round,
    members: Members,
    reports: Report,
    arrived: Arrived,
    weights: Float[Array, " m"],
    keys: Keys,
) -> tuple[Received, Any, Metrics]:
    """What the server makes of what arrived, the aggregator's state, and counts and metrics."""
    contributions, of_kind, kinds = arrived.message, arrived.kinds, method.kinds
    measuring: Any = reports.measured
    if method.read is not None:
        contributions = map_clients(
            method.read, members.memory, arrived, at_once=_in_one_pass(method, weights)
        )
        returned.alike(
            "what read returns", contributions, arrived.message, "messages", dtypes=False
        )
        nothing = jax.tree.map(jnp.zeros_like, contributions)
        contributions = select(weights > 0, contributions, nothing)
    server = state.server
    context = Combining(
        keys.aggregator,
        round.number,
        round.members,
        round.clients,
        server.params,
        round.weights > 0,
    )
    one, combining, measured = (
        (contributions, server.aggregator, {})
        if method.in_turn
        else combined(
            method.aggregator, contributions, weights, of_kind, server.aggregator, context
        )
    )
    present = {"": weights > 0} | {k: (weights > 0) & of_kind[k] for k in kinds}
    # From the count, so that it is as precise as the run: memories telescope by it.
    shares = {name: jnp.sum(there) / round.clients for name, there in present.items()}
    counts = {name: jnp.sum(there).astype(jnp.float32) for name, there in present.items()}
    reporting, share = counts.pop(""), shares.pop("")
    metrics = mean_metrics(reports.metrics, jnp.where(measuring, weights, 0))
    received = Received(
        one, reporting, shares if kinds else share, round.number, keys.server, metrics, round.event
    )
    return received, combining, {"clients_reporting": reporting} | counts | measured


def remembered(
    method: Method,
    reports: Report,
    arrived: Arrived,
    server: Server,
    round: Round,
    invited: Float[Array, " m"],
    key: Key[Array, ""],
) -> tuple[Any, Metrics]:
    """What the cohort remembers after the update, and what the second broadcast measured."""
    receive = method.receive
    if receive is None:
        return reports.memory, {}
    heard, measured = hearing(method.answer, method.downlink, server, invited, sending(round, key))

    def one(memory: Any, arrived: Arrived, heard: Any, server: Server, index: Array) -> Any:
        told = receive(memory, arrived, server if method.answer is None else heard, index)
        returned.alike("the memory that receive returns", told, memory, "the one it got")
        return told

    shared = (server, round.number)
    told = map_clients(
        one, reports.memory, arrived, heard, shared=shared, at_once=_in_one_pass(method, invited)
    )
    return told, measured


def rested(method: Method, memory: Any, round: Round) -> Any:
    """What all clients remember who take no part."""
    if method.rest is None:
        return memory
    after = method.rest(memory, round)
    returned.alike("the memory that rest returns", after, memory, "the one it got")
    return after


def _in_one_pass(method: Method, weights: Float[Array, " m"]) -> int | None:
    """How many clients' rows `read` and `receive` get together, which are arithmetic of a few rows.

    A CPU passes once over all, where a loop over clients would write its results apart from what uses
    them; elsewhere as many as work together.
    """
    return len(weights) if platform() == "cpu" else method.at_once


def sending(round: Round, key: Key[Array, ""]) -> Sending:
    """One sending between the cohort and the server."""
    return Sending(key, round.number, round.members, round.clients, round.weights > 0)
