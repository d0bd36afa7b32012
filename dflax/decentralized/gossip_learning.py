"""Gossip learning: every node trains its model, sends it to a random peer and merges what it gets."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.channel import Channel
from dflax.data.dataset import Dataset
from dflax.decentralized.framework.protocol import Client, adapt_then_combine
from dflax.gossip.age_weighted import Aged, age_weighted
from dflax.gossip.mixer import Mixer, require_mixer
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, check_optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.population import Assignment


def gossip_learning(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    clients: int,
    *,
    mixing: Callable[[Mixer], Mixer] | None = None,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Models wander over a network without any structure, and the longer trained weigh more.

    A period, one round here, with a fresh local optimiser; t_i counts the rounds of training in x_i:

        x_i <- K steps of `optimizer` from x_i,    t_i <- t_i + 1
        send (x_i, t_i) to a peer drawn uniformly from the other nodes
        x_i <- (t_i x_i + sum_j t_j x_j) / (t_i + sum_j t_j),    t_i <- max(t_i, t_j)

    over the j that sent to i. The original merges message by message as they come; here those of one
    period are merged at once. Nodes that do not take part keep model and age.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: every node's optax optimiser; or a function of the round's number.
      clients: n >= 2, of the federation.
      mixing: the merging made from that by age, for nodes that start from draws of their own
        `lambda plain: gossip.variance_corrected(plain, 0.0)`: a merged tensor then gets the mean
        variance, by age as well, of what was merged.
      channel: what happens to models and ages on the way; see `adapt_then_combine`.
      at_once: see `dflax.map_clients`.

    Returns:
      As `dflax.decentralized.adapt_then_combine`; ages are `state.clients.memory`, `[n]` float32.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Ormándi, Hegedűs and Jelasity, Gossip Learning with Linear Models on Fully Distributed Data,
      arXiv 1109.1396.
    """
    check_optimizer("optimizer", optimizer)
    validation.integer("clients", clients, low=2)
    merging = age_weighted(clients)
    if mixing is not None:
        validation.function("mixing", mixing, "For example gossip.variance_corrected.", takes=1)
        merging = mixing(merging)
        require_mixer(merging, "what mixing returns")
    solve = solver(loss, optimizer)

    def start(key: Key[Array, ""], models: Params) -> Float[Array, " n"]:
        return jnp.zeros(clients)

    def train(
        assignment: Assignment, own: Client, data: Dataset, index: Int[Array, ""]
    ) -> tuple[Client, Metrics]:
        solution = solve(Subproblem(), own.params, assignment, data, index=index)
        return Client(solution.params, own.memory + 1.0), solution.metrics

    def aged(before: Client, after: Client, index: Int[Array, ""]) -> Aged:
        return Aged(after.params, after.memory)

    def adopt(before: Client, after: Client, heard: Aged, index: Int[Array, ""]) -> Client:
        return Client(*heard)

    return adapt_then_combine(
        train,
        merging,
        start=start,
        message=aged,
        hear=adopt,
        channel=channel,
        at_once=at_once,
    )
