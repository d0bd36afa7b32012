"""RERCE-Fed with continual local updates: clients move on between their turns, the server remembers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.channel.broadcast import both_ways, broadcast
from dflax.channel.channel import Channel
from dflax.clients import gather, map_clients, replicate, scatter, weighted_mean
from dflax.federation import Round
from dflax.local.quadratic import Quadratic, proximal_points


class ContinualServer(NamedTuple):
    """What the server carries.

    Attributes:
      params: `[d]`, s, the mean of what it last received from each client; what it sends next.
    """

    params: Float[Array, " d"]


class ContinualClients(NamedTuple):
    """What exists per client.

    Attributes:
      params: `[n, d]`, the models.
      heard: `[n, d]`, what each received last.
      has_heard: `[n]`, whether it received anything yet.
      sent: `[n, d]`, what the server received from each last.
      objective: the objectives, leaves `[n, ...]`; never written.
    """

    params: Float[Array, "n d"]
    heard: Float[Array, "n d"]
    has_heard: Bool[Array, " n"]
    sent: Float[Array, "n d"]
    objective: Quadratic


def rerce_fed_continual(
    rho: float,
    *,
    uplink: Channel | None = None,
    downlink: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """RERCE-Fed with continual local updates on quadratic objectives, over noisy links.

    With P_k = rho (G_k + rho I)^-1, for the cohort S of a round:

        heard_k <- downlink(s)                                                   k in S
        x_k <- (I - P_k) x_k + P_k heard_k,  s_k = 2 x_k - x_k before            all k
        sent_k <- uplink(s_k)                                                    k in S
        s <- mean over all n of sent_k

    The extrapolation is the clients', and the mean is over all of them, old messages of those outside
    of S included: the floor under noise hardly depends on how few are in S, where that of
    `rerce_fed` rises as the mean is over fewer. In the first round all n clients send
    s_k = 2 x_k - z_0 and none moves. With everyone in S and perfect links the models are those of
    `rerce_fed`, and of ADMM.

    Args:
      rho: penalty > 0; traceable.
      uplink: from clients to server, without memory; default perfect. For example
        `dflax.channel.gaussian_noise(0.1)`. In place of a lost message the server keeps the one
        before, at first z_0.
      downlink: from server to each client, without memory; default perfect. Whose copy is lost goes on
        with the one before; a client that has heard nothing yet stays where it is.
      at_once: see `dflax.map_clients`. All n clients work in every round.

    Returns:
      An `Algorithm` on `FederatedState(round, ContinualServer, ContinualClients)` with
      `init(key, params, objectives)`: z_0 `[d]`, usually zeros, and the clients' `Quadratic` from
      `dflax.local.quadratic_objectives`. The schedule S is the federation's participation. Metrics:
      `clients_reporting`, `numbers_up`, `numbers_down`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Lari et al., Noise-Robust and Resource-Efficient ADMM-based Federated Learning, arXiv 2409.13451.
    """
    validation.real("rho", rho, low=0.0, low_open=True, scalar=True)
    uplink, downlink = both_ways(uplink, downlink)
    if at_once is not None:
        validation.integer("at_once", at_once, low=1)

    def init(
        key: Key[Array, ""], params: Float[Array, " d"], objectives: Quadratic
    ) -> FederatedState:
        validation.typed_key("key", key)
        models = proximal_points(objectives, params, rho)
        start = replicate(params, len(models))
        silent = jnp.zeros(len(models), bool)
        clients = ContinualClients(models, start, silent, start, objectives)
        return FederatedState(jnp.int32(0), ContinualServer(params), clients)

    def move(x: Array, objective: Quadratic, target: Array, has_heard: Array) -> Array:
        return jnp.where(has_heard, objective.toward(x, target, rho), x)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        clients, cohort = state.clients, round.cohort
        validation.leading_axis("the clients' models", clients.params, round.clients)
        down_key, up_key, first_key = jax.random.split(round.key, 3)
        members, first = round.weights.shape[0], state.round == 0
        taking_part = (round.weights > 0).astype(jnp.float32)

        copies, arrived = broadcast(downlink, state.server.params, members, down_key)
        hears = taking_part * arrived * ~first
        heard = scatter(clients.heard, cohort, copies, hears)
        has_heard = scatter(clients.has_heard, cohort, jnp.ones(members, bool), hears)
        models = map_clients(
            move, clients.params, clients.objective, heard, has_heard, at_once=at_once
        )

        def everyone(sent: Array) -> tuple[Array, Array]:
            weights = jnp.ones(len(models), jnp.float32)
            messages = 2 * models - state.server.params
            messages, weights, _, _ = uplink.apply(messages, weights, (), first_key)
            return scatter(sent, None, messages, weights), weights.sum()

        def scheduled(sent: Array) -> tuple[Array, Array]:
            new, old = gather((models, clients.params), cohort)
            messages, weights, _, _ = uplink.apply(2 * new - old, taking_part, (), up_key)
            return scatter(sent, cohort, messages, weights), jnp.sum(weights > 0.0).astype(
                jnp.float32
            )

        sent, reporting = jax.lax.cond(first, everyone, scheduled, clients.sent)
        size, talking = models.shape[1], taking_part.sum()
        metrics = {
            "clients_reporting": reporting,
            "numbers_up": jnp.where(first, len(models), talking) * size,
            "numbers_down": jnp.where(first, 0.0, talking * size),
        }
        server = ContinualServer(weighted_mean(sent))
        clients = ContinualClients(models, heard, has_heard, sent, clients.objective)
        return FederatedState(state.round + 1, server, clients), metrics

    return Algorithm(init, step)
