"""RERCE-Fed: consensus ADMM without its duals, so that a link's noise enters once."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm
from dflax.channel.broadcast import without_memory
from dflax.channel.channel import Channel
from dflax.data.dataset import Dataset
from dflax.local.convex.quadratic import Quadratic, objective_of, proximal_points
from dflax.population import Assignment
from dflax.server.framework.extrapolated import Extrapolated, extrapolate, not_started, publish
from dflax.server.framework.protocol import Heard, Report
from dflax.server.framework.with_server import with_server


class Model(NamedTuple):
    """What each client remembers.

    Attributes:
      params: `[n, d]`, x_k.
    """

    params: Float[Array, "n d"]


def rerce_fed(
    penalty: float,
    *,
    uplink: Channel | None = None,
    downlink: Channel | None = None,
    aggregator: Aggregator | None = None,
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
      penalty: rho > 0; traceable.
      uplink: from clients to server, without memory; default perfect. For example
        `dflax.channel.gaussian_noise(0.1)`. A client whose message is lost keeps its model.
      downlink: from server to each client, without memory; default perfect. A client whose copy is
        lost keeps its model, and sends it.
      aggregator: of the models; default the mean.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState` with `init(key, params, objectives)`: z_0 `[d]`, usually
      zeros, and the clients' `Quadratic`. Its rounds are of `dflax.local.quadratic_federation`. z is
      `state.server.params`, s `state.server.memory.broadcast`, the x_k `state.clients.params`. The
      schedule S is the federation's participation; reporting clients count the same. Metrics:
      `clients_reporting`, `numbers_up`, `numbers_down`, and what the links measure.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Lari et al., Noise-Robust and Resource-Efficient ADMM-based Federated Learning, arXiv 2409.13451.
    """
    validation.real("penalty", penalty, low=0.0, low_open=True, scalar=True)

    def start(
        key: Key[Array, ""], params: Float[Array, " d"], objectives: Quadratic
    ) -> tuple[Extrapolated, Model]:
        return not_started(params), Model(proximal_points(objectives, params, penalty))

    def work(
        assignment: Assignment, own: Model, heard: Heard, data: Dataset, index: Array
    ) -> Report:
        x, objective = own.params, objective_of(assignment, data)
        x = jnp.where(heard.arrived, objective.toward(x, heard.message, penalty).astype(x.dtype), x)
        return Report(x, Model(x), {})

    return with_server(
        start,
        work,
        extrapolate,
        aggregator=aggregator,
        channel=without_memory("uplink", uplink),
        publish=publish,
        downlink=without_memory("downlink", downlink),
        equal=True,
        at_once=at_once,
    )
