"""Agents as clients: each alone, averaged by a server, or by gossip."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import map_cohort, replicate, scatter
from dflax.data.dataset import Dataset
from dflax.decentralized.framework.protocol import Client, adapt_then_combine
from dflax.gossip.mixer import Mixer
from dflax.local.solver import Optimizer
from dflax.population import Assignment, Round
from dflax.server.framework.averaging import descent
from dflax.server.framework.protocol import Report, Server
from dflax.server.framework.with_server import with_server

Memory = Any


class Learner(NamedTuple):
    """What an agent does by itself: the part that all federations of agents share.

    Attributes:
      init: `(key, params, task) -> memory`: environments, optimiser, buffers; with the agent's task.
      learn: `(key, params, memory) -> (params, memory, metrics)`: a round of experience and updates.
      task: of agents that are given no other.
    """

    init: Callable[[Key[Array, ""], Params, Any], Memory]
    learn: Callable[[Key[Array, ""], Params, Memory], tuple[Params, Memory, Metrics]]
    task: PyTree[Array] = ()


class Agent(NamedTuple):
    """An agent that learns alone, leaves `[A, ...]`.

    Attributes:
      params: its networks.
      memory: the learner's.
    """

    params: Params
    memory: Memory


def alone(learner: Learner, agents: int, *, at_once: int | None = None) -> Algorithm:
    """Agents that learn side by side and exchange nothing: seeds, tasks, or a federation's baseline.

    Args:
      learner: for example of `ppo`.
      agents: A >= 1, the clients of the `dflax.Population` that rounds come from.
      at_once: agents that a device computes at the same time; None: all.

    Returns:
      An `Algorithm` with `init(key, params, tasks=None)`: `params` of one agent, which all start from,
      or a function `key -> params` for independent starts; `tasks` with leaves `[A, ...]`. The state's
      `clients` are an `Agent`. Metrics: the learner's, `[A]` each.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _check(learner, agents, at_once)

    def init(
        key: Key[Array, ""], params: Any, tasks: PyTree[Array] | None = None
    ) -> FederatedState:
        model_key, memory_key = jax.random.split(key)
        if callable(params):
            models = jax.vmap(params)(jax.random.split(model_key, agents))
        else:
            validation.model("params", params)
            models = replicate(params, agents)
        memories = _memories(learner, agents, memory_key, models, tasks)
        return FederatedState(jnp.int32(0), (), Agent(models, memories))

    def work(own: Agent, assignment: Assignment) -> tuple[Agent, Metrics]:
        params, memory, metrics = learner.learn(assignment.key, own.params, own.memory)
        return Agent(params, memory), metrics

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        if round.clients != agents:
            raise ValueError(
                f"agents must be the population's number of clients, {int(round.clients)}, got "
                f"{agents}."
            )
        own, metrics = map_cohort(
            work, state.clients, round.cohort, round.assignments, at_once=at_once or agents
        )
        clients = scatter(state.clients, round.cohort, own, round.weights)
        return FederatedState(state.round + 1, state.server, clients), metrics

    return Algorithm(init, step)


def federated(
    learner: Learner,
    agents: int,
    *,
    server_optimizer: Optimizer | None = None,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Federated agents: each learns from the server's networks, which step along the mean change.

        theta_i = learn(theta)                                              in parallel
        theta   = server_optimizer(theta, -mean of theta_i - theta)         SGD(1): the mean of theta_i

    Environments, buffers and optimisers stay with the agents. A robust or a private federation is an
    aggregator or a channel.

    Args:
      learner: for example of `ppo`.
      agents: A >= 1, the clients of the `dflax.Population` that rounds come from.
      server_optimizer: see `dflax.server.fedavg`.
      aggregator: default the weighted mean.
      channel: default perfect.
      at_once: agents that a device computes at the same time; None: all.

    Returns:
      An `Algorithm` with `init(key, params, tasks=None)`; networks are `state.server.params`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _check(learner, agents, at_once)
    begun, update = descent(server_optimizer)

    def start(
        key: Key[Array, ""], params: Params, tasks: PyTree[Array] | None = None
    ) -> tuple[PyTree[Array], Memory]:
        memory, _ = begun(key, params)
        return memory, _memories(learner, agents, key, replicate(params, agents), tasks)

    def work(
        assignment: Assignment, memory: Memory, server: Server, data: Dataset, index: Int[Array, ""]
    ) -> Report:
        params, memory, metrics = learner.learn(assignment.key, server.params, memory)
        change = jax.tree.map(jnp.subtract, params, server.params)
        return Report(change, memory, metrics)

    return with_server(
        start,
        work,
        update,
        aggregator=aggregator,
        channel=channel,
        clients=agents,
        at_once=at_once or agents,
    )


def gossiping(
    learner: Learner,
    agents: int,
    mixer: Mixer,
    *,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Agents without a server: each learns, then mixes its networks with its neighbours'.

    Args:
      learner: for example of `ppo`.
      agents: A >= 1, the clients of the mixer and of the `dflax.Population`.
      mixer: see `dflax.gossip`.
      channel: default perfect.
      at_once: agents that a device computes at the same time; None: all.

    Returns:
      An `Algorithm` with `init(key, params, tasks=None)`; networks are `state.clients.params`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _check(learner, agents, at_once)

    def start(key: Key[Array, ""], models: Params, tasks: PyTree[Array] | None = None) -> Memory:
        return _memories(learner, agents, key, models, tasks)

    def work(
        assignment: Assignment, client: Client, data: Dataset, index: Int[Array, ""]
    ) -> tuple[Client, Metrics]:
        params, memory, metrics = learner.learn(assignment.key, client.params, client.memory)
        return Client(params, memory), metrics

    return adapt_then_combine(work, mixer, start=start, channel=channel, at_once=at_once or agents)


def _memories(
    learner: Learner, agents: int, key: Key[Array, ""], models: Params, tasks: PyTree[Array] | None
) -> Memory:
    """Each agent's memory, with its own task or with the learner's."""
    if tasks is None:
        own = replicate(learner.task, agents)
    else:
        validation.arrays("tasks", tasks)
        validation.leading_axis("tasks", tasks, agents)
        own = tasks
        given: Any = jax.tree.structure(own)
        wanted: Any = jax.tree.structure(learner.task)
        if given != wanted:
            raise ValueError(f"tasks must have the structure of the task, {wanted}, got {given}.")
    return jax.vmap(learner.init)(jax.random.split(key, agents), models, own)


def _check(learner: Any, agents: Any, at_once: Any) -> None:
    validation.instance("learner", learner, Learner, "For example dflax.rl.ppo(...).")
    validation.integer("agents", agents, low=1)
    validation.at_once(at_once)
