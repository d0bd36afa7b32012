"""Consensus ADMM with duals at the clients, over links that may be noisy: the textbook's way."""

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


class AdmmServer(NamedTuple):
    """What the server carries.

    Attributes:
      params: `[d]`, z, the consensus.
    """

    params: Float[Array, " d"]


class AdmmClients(NamedTuple):
    """What the n clients carry.

    Attributes:
      params: `[n, d]`, their models.
      dual: `[n, d]`, phi_k, unscaled: a gradient in its units.
      objective: their objectives, leaves `[n, ...]`; never written.
    """

    params: Float[Array, "n d"]
    dual: Float[Array, "n d"]
    objective: Quadratic


def consensus_admm(
    rho: float,
    *,
    uplink: Channel | None = None,
    downlink: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Consensus ADMM on quadratic objectives f_k, over noisy links, with some clients a round.

    For the cohort S of a round:

        x_k   <- argmin over x of f_k(x) + <phi_k, x> + (rho / 2) |x - downlink(z)|^2       k in S
        z     <- mean over S of uplink(x_k + phi_k / rho)
        phi_k <- phi_k + rho (x_k - downlink'(z))                                           k in S

    with noise of its own each time a client receives z. The duals start at 0 and the models at the
    proximal points of z_0, which everybody knows, so that the first round has no local update. With
    everyone in S and perfect links z is the plain mean of the models.

    Args:
      rho: penalty > 0; traceable.
      uplink: from clients to server, without memory; default perfect.
      downlink: from server to each client, without memory; default perfect. Whose copy is lost leaves
        out what it was for.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on `FederatedState(round, AdmmServer, AdmmClients)` with
      `init(key, params, objectives)`: z_0 `[d]`, usually zeros, and the clients' `Quadratic` from
      `dflax.local.quadratic_objectives`. The schedule S is the federation's participation; reporting
      clients count the same. Metrics: `clients_reporting`, `numbers_up`, `numbers_down`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Boyd et al., Distributed Optimization and Statistical Learning via ADMM, chapter 7, 2011.
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
        clients = AdmmClients(models, jnp.zeros_like(models), objectives)
        return FederatedState(jnp.int32(0), AdmmServer(params), clients)

    def minimise(x: Array, phi: Array, objective: Quadratic, heard: Array, arrived: Array) -> Array:
        return jnp.where(arrived, objective.proximal_point(heard - phi / rho, rho), x)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        clients, cohort, z = state.clients, round.cohort, state.server.params
        validation.leading_axis("the clients' models", clients.params, round.clients)
        down_key, up_key, dual_key = jax.random.split(round.key, 3)
        members, first = round.weights.shape[0], state.round == 0
        before, dual, objective = gather((clients.params, clients.dual, clients.objective), cohort)
        heard, arrived = broadcast(downlink, z, members, down_key)
        models = map_clients(
            minimise, before, dual, objective, heard, arrived & ~first, at_once=at_once
        )
        equal = (round.weights > 0).astype(jnp.float32)
        sent, weights, _, measured = uplink.apply(models + dual / rho, equal, (), up_key)
        reporting = jnp.sum(weights > 0).astype(jnp.float32)
        z = select(reporting > 0, weighted_mean(sent, weights), z)
        heard, arrived = broadcast(downlink, z, members, dual_key)
        ascended = select(arrived, dual + rho * (models - heard), dual)
        clients = AdmmClients(
            scatter(clients.params, cohort, models, round.weights),
            scatter(clients.dual, cohort, ascended, round.weights),
            clients.objective,
        )
        metrics = {
            "clients_reporting": reporting,
            "numbers_up": equal.sum() * z.size,
            "numbers_down": jnp.where(first, 1.0, 2.0) * equal.sum() * z.size,
        }
        return FederatedState(state.round + 1, AdmmServer(z), clients), metrics | measured

    return Algorithm(init, step)
