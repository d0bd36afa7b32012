"""Consensus ADMM with duals at the clients, over links that may be noisy: the textbook's way."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, Metrics
from dflax.channel.broadcast import without_memory
from dflax.channel.channel import Channel
from dflax.clients import select
from dflax.data.dataset import Dataset
from dflax.local.convex.quadratic import Quadratic, objective_of, proximal_points
from dflax.population import Assignment
from dflax.server.framework.protocol import Arrived, Heard, Received, Report, Server
from dflax.server.framework.with_server import with_server


class Started(NamedTuple):
    """What the server remembers.

    Attributes:
      started: `[]`, whether a round has been aggregated; before that everybody knows z_0.
    """

    started: Bool[Array, ""]


class Primal(NamedTuple):
    """What the n clients remember.

    Attributes:
      params: `[n, d]`, their models.
      dual: `[n, d]`, phi_k, unscaled: a gradient in its units.
    """

    params: Float[Array, "n d"]
    dual: Float[Array, "n d"]


def consensus_admm(
    penalty: float,
    *,
    uplink: Channel | None = None,
    downlink: Channel | None = None,
    aggregator: Aggregator | None = None,
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
      penalty: rho > 0; traceable.
      uplink: from clients to server, without memory; default perfect. A client whose message is lost
        keeps model and dual.
      downlink: from server to each client, without memory; default perfect. A client
        whose copy is lost leaves out what it was for.
      aggregator: of the messages; default the mean.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState` with `init(key, params, objectives)`: z_0 `[d]`, usually
      zeros, and the clients' `Quadratic`. Its rounds are of `dflax.local.quadratic_federation`. z is
      `state.server.params`, x_k and phi_k are `state.clients.memory`. The schedule S is the
      federation's participation; reporting clients count the same. Metrics: `clients_reporting`,
      `numbers_up`, `numbers_down`, and what the links measure.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Boyd et al., Distributed Optimization and Statistical Learning via ADMM, chapter 7, 2011.
    """
    validation.real("penalty", penalty, low=0.0, low_open=True, scalar=True)

    def start(
        key: Key[Array, ""], params: Float[Array, " d"], objectives: Quadratic
    ) -> tuple[Started, Primal]:
        models = proximal_points(objectives, params, penalty)
        return Started(jnp.bool_(False)), Primal(models, jnp.zeros_like(models))

    def publish(server: Server) -> tuple[Array, Array]:
        return server.params, server.memory.started

    def minimise(
        assignment: Assignment, own: Primal, heard: Heard, data: Dataset, index: Array
    ) -> Report:
        x, phi = own
        objective = objective_of(assignment, data)
        nearest = objective.proximal_point(heard.message - phi / penalty, penalty).astype(x.dtype)
        x = jnp.where(heard.arrived, nearest, x)
        return Report(x + phi / penalty, Primal(x, phi), {})

    def update(server: Server, received: Received) -> tuple[Array, Started, Metrics]:
        return received.message.astype(server.params.dtype), Started(jnp.bool_(True)), {}

    def ascend(memory: Primal, arrived: Arrived, heard: Heard, index: Array) -> Primal:
        x, phi = memory
        risen = (phi + penalty * (x - heard.message)).astype(phi.dtype)
        return Primal(x, select(heard.arrived, risen, phi))

    return with_server(
        start,
        minimise,
        update,
        aggregator=aggregator,
        channel=without_memory("uplink", uplink),
        publish=publish,
        downlink=without_memory("downlink", downlink),
        receive=ascend,
        answer=publish,
        equal=True,
        at_once=at_once,
    )
