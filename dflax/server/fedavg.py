"""Federated averaging, with any optax optimiser on the clients and on the server."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, mean
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel, perfect
from dflax.clients import gather, map_clients, mean_metrics, replicate, scatter, select
from dflax.data.dataset import Dataset
from dflax.federation import Assignment, Round
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, check_optimizer, optimizer_at, solver
from dflax.local.subproblem import Subproblem


class Server(NamedTuple):
    """What the server of `fedavg` carries.

    Attributes:
      params: the global model.
      optimizer: state of the server's optimiser.
      aggregator: state of the aggregator.
    """

    params: Params
    optimizer: PyTree[Array]
    aggregator: PyTree[Array]


class Clients(NamedTuple):
    """What the clients of `fedavg` carry: the channel's memory, leaves `[n, ...]`, often none."""

    channel: PyTree[Array]


def fedavg(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    server_optimizer: Optimizer | None = None,
    *,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    clients: int | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Federated averaging (FedAvg) and, through the server's optimiser, its adaptive relatives.

    A round, for a cohort S of m clients with weights w_i and a fresh local optimiser each:

        y_i = K steps of `optimizer` on f_i from x                            i in S, in parallel
        d   = aggregator(channel(y_i - x), w_i)                               mean: FedAvg
        x   = server_optimizer(x, -d)                                         SGD(1): x + d

    `optax.sgd(1.0)` on the server is FedAvg; `optax.sgd(s, momentum)` FedAvgM; `optax.adam(s)`,
    `optax.yogi(s)`, `optax.adagrad(s)` are FedAdam, FedYogi and FedAdagrad. A round in which nobody
    reports leaves the server as it was.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      server_optimizer: the server's, applied to the negative aggregated change; default
        `optax.sgd(1.0)`. A function of the round's number as well.
      aggregator: default the weighted mean.
      channel: between clients and server; default perfect. One with memory needs `clients`.
      clients: n, the number of clients of the federation; only read when the channel has memory.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; the model is `state.server.params`. Metrics: the loss's own
      (means over local steps, then over reporting clients by weight) and `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      McMahan et al., arXiv 1602.05629; Hsu et al., arXiv 1909.06335 (FedAvgM); Reddi et al.,
      Adaptive Federated Optimization, arXiv 2003.00295.
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    channel = perfect() if channel is None else channel
    check_optimizer("server_optimizer", server_optimizer)
    validation.instance(
        "aggregator", aggregator, Aggregator, "For example dflax.aggregation.mean()."
    )
    validation.instance("channel", channel, Channel, "For example dflax.channel.finite_only().")
    if clients is not None:
        validation.integer("clients", clients, low=1)
    if at_once is not None:
        validation.integer("at_once", at_once, low=1)
    solve = solver(loss, optimizer)

    def init(key: Key[Array, ""], params: Params) -> FederatedState:
        validation.typed_key("key", key)
        validation.model("params", params)
        memory = channel.init(params)
        if jax.tree.leaves(memory):
            if clients is None:
                raise ValueError(
                    "clients must be given, the number of clients of the federation, because the "
                    "channel keeps a memory for each of them; got None."
                )
            memory = replicate(memory, clients)
        server = Server(
            params,
            optimizer_at(server_optimizer, jnp.int32(0)).init(params),
            aggregator.init(params),
        )
        return FederatedState(jnp.int32(0), server, Clients(memory))

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        if jax.tree.leaves(state.clients):
            validation.leading_axis("the channel's memory", state.clients, round.clients)
        channel_key, aggregator_key = jax.random.split(round.key)
        server = state.server

        def local_work(
            assignment: Assignment, weight: Array, params: Params, data: Dataset, index: Array
        ) -> tuple[Params, Metrics]:
            solution = solve(Subproblem(), params, assignment, data, index=index)
            # Who does not count sends zeros: in a mean, 0 times NaN would be NaN.
            change = jax.tree.map(
                lambda y, x: jnp.where(weight > 0, y - x, 0), solution.params, params
            )
            return change, solution.metrics

        changes, measured = map_clients(
            local_work,
            round.assignments,
            round.weights,
            shared=(server.params, round.data, round.number),
            at_once=at_once,
        )
        memory = gather(state.clients.channel, round.cohort)
        changes, weights, memory, sent = channel.apply(changes, round.weights, memory, channel_key)
        memory = scatter(state.clients.channel, round.cohort, memory, round.weights)
        metrics = mean_metrics(measured, weights * (round.assignments.local_steps > 0))

        change, aggregator_state, combined = aggregator.apply(
            changes, weights, server.aggregator, aggregator_key
        )
        descent = optimizer_at(server_optimizer, round.number)
        updates, optimizer_state = descent.update(
            jax.tree.map(jnp.negative, change), server.optimizer, server.params
        )
        params = optax.apply_updates(server.params, updates)
        new = Server(params, optimizer_state, aggregator_state)
        new = select(jnp.any(weights > 0), new, server)
        metrics |= {"clients_reporting": jnp.sum(weights > 0).astype(jnp.float32)}
        return (
            FederatedState(state.round + 1, new, Clients(memory)),
            metrics | sent | combined,
        )

    return Algorithm(init, step)
