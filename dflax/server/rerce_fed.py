"""RERCE-Fed: consensus ADMM without its duals, so that a link's noise enters once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.channel.broadcast import both_ways, broadcast
from dflax.channel.channel import Channel
from dflax.clients import gather, map_clients, scatter, select, weighted_mean
from dflax.federation import Round
from dflax.local.quadratic import Quadratic, proximal_points


class RerceServer(NamedTuple):
    """What the server carries.

    Attributes:
      params: `[d]`, z, the mean of what it received last.
      broadcast: `[d]`, s = 2 z - z_before, what it sends next.
    """

    params: Float[Array, " d"]
    broadcast: Float[Array, " d"]


class RerceClients(NamedTuple):
    """What the n clients carry.

    Attributes:
      params: `[n, d]`, their models.
      objective: their objectives, leaves `[n, ...]`; never written.
    """

    params: Float[Array, "n d"]
    objective: Quadratic


def rerce_fed(
    rho: float,
    *,
    uplink: Channel | None = None,
    downlink: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """RERCE-Fed: ADMM on quadratic objectives, over noisy links, with some clients a round.

    With P_k = rho (G_k + rho I)^-1, for the cohort S of a round:

        x_k <- (I - P_k) x_k + P_k downlink(s)                                   k in S
        z_before <- z,  z <- mean over S of uplink(x_k),  s <- 2 z - z_before

    The first round has no local update: the clients start at their proximal points
    x_k = (G_k + rho I)^-1 (h_k + rho z_0), and the data enter there alone. With everyone in S and
    perfect links the iterates are those of ADMM with duals, which never appear; a client uses what it
    receives once, where ADMM with duals adds its noise to them for ever. Every consensual point is a
    fixed point: a wrong start is not repaired later, and noise moves the consensus as a random walk
    (with everyone in S by rho^2 n (u^2 + v^2) tr((sum_k G_k)^-2) a round in E |x - x*|^2, for
    deviations u, v of the links).

    Args:
      rho: penalty > 0; traceable.
      uplink: from clients to server, without memory; default perfect. For example
        `dflax.channel.gaussian_noise(0.1)`.
      downlink: from server to each client, without memory; default perfect. Whose copy is lost keeps
        its model, and sends it.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on `FederatedState(round, RerceServer, RerceClients)` with
      `init(key, params, objectives)`: z_0 `[d]`, usually zeros, and the clients' `Quadratic` from
      `dflax.local.quadratic_objectives`. The schedule S is the federation's participation; reporting
      clients count the same. Metrics: `clients_reporting`, `numbers_up`, `numbers_down`.

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
        server = RerceServer(params, params)
        return FederatedState(jnp.int32(0), server, RerceClients(models, objectives))

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        server, clients = state.server, state.clients
        validation.leading_axis("the clients' models", clients.params, round.clients)
        down_key, up_key = jax.random.split(round.key)
        members, first = round.weights.shape[0], state.round == 0
        heard, arrived = broadcast(downlink, server.broadcast, members, down_key)

        def move(x: Array, objective: Quadratic, target: Array, arrived: Array) -> Array:
            return jnp.where(arrived, objective.toward(x, target, rho), x)

        before, objectives = gather((clients.params, clients.objective), round.cohort)
        models = map_clients(move, before, objectives, heard, arrived & ~first, at_once=at_once)
        equal = (round.weights > 0).astype(jnp.float32)
        sent, weights, _, measured = uplink.apply(models, equal, (), up_key)
        z = weighted_mean(sent, weights)
        reporting = jnp.sum(weights > 0).astype(jnp.float32)
        server = select(reporting > 0, RerceServer(z, 2 * z - server.params), server)
        models = scatter(clients.params, round.cohort, models, round.weights)
        numbers = equal.sum() * z.size
        metrics = {
            "clients_reporting": reporting,
            "numbers_up": numbers,
            "numbers_down": jnp.where(first, 0.0, numbers),
        }
        clients = clients._replace(params=models)
        return FederatedState(state.round + 1, server, clients), metrics | measured

    return Algorithm(init, step)
