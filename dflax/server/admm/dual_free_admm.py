"""Consensus ADMM on any loss without duals: a client carries the centre of its proximal step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, Params
from dflax.channel.broadcast import without_memory
from dflax.channel.channel import Channel
from dflax.clients import replicate, select
from dflax.data.dataset import Dataset
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.population import Assignment
from dflax.server.framework.extrapolated import Extrapolated, extrapolate, not_started, publish
from dflax.server.framework.protocol import Heard, Report
from dflax.server.framework.with_server import with_server


class Centred(NamedTuple):
    """What each client remembers, leaves `[n, ...]`.

    Attributes:
      params: x_k, its model.
      center: r_k = z - phi_k / rho, where phi_k is the dual that ADMM would keep.
    """

    params: Params
    center: Params


def dual_free_admm(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    penalty: float,
    clients: int,
    *,
    uplink: Channel | None = None,
    downlink: Channel | None = None,
    aggregator: Aggregator | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """RERCE-Fed's elimination for any loss, with inexact proximal steps; links may be noisy.

    For the cohort S of a round:

        r_k <- r_k + downlink(s) - x_k                                           k in S
        x_k <- K steps of `optimizer` from x_k on f_k(x) + (rho / 2) |x - r_k|^2
        z_before <- z,  z <- mean over S of uplink(x_k),  s <- 2 z - z_before

    The first line is skipped in the first round. With everyone in S, perfect links and exact proximal
    steps it is ADMM with duals; on quadratics `rerce_fed`. The steps need not be exact for the right
    limit: where x_k and z stand still, r_k does, and the inner steps have converged. With part of the
    clients in S the mean over a few makes the limit depend on the schedule, the less the more are in S.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: of the inner steps, an optax optimiser, fresh in every round; or a function of the
        round's number that returns one.
      penalty: rho > 0, in the loss's units over the model's squared; traceable.
      clients: n, the number of clients of the federation.
      uplink: from clients to server, without memory; default perfect. For example
        `dflax.channel.gaussian_noise(0.01)`. Whose message is lost forgets the round.
      downlink: from server to each client, without memory; default perfect. Whose copy is lost works
        around its old centre.
      aggregator: of the models; default the mean.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; the model z is `state.server.params`. `init(key, params)`
      starts all at z_0 = params; `init(key, params, starts)` takes the clients' own models `[n, ...]`,
      their proximal points of z_0 where these are known. Reporting clients count the same. Metrics:
      the loss's own, `clients_reporting`, `numbers_up`, `numbers_down`, and what the links measure.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Lari et al., Noise-Robust and Resource-Efficient ADMM-based Federated Learning, arXiv 2409.13451
      (the elimination, for weighted least squares).
    """
    solve = solver(loss, optimizer)
    validation.real("penalty", penalty, low=0.0, low_open=True, scalar=True)
    validation.integer("clients", clients, low=1)

    def start(
        key: Key[Array, ""], params: Params, starts: Params | None = None
    ) -> tuple[Extrapolated, Centred]:
        models = replicate(params, clients) if starts is None else starts
        validation.leading_axis("starts", models, clients)
        return not_started(params), Centred(models, replicate(params, clients))

    def local_work(
        assignment: Assignment, own: Centred, heard: Heard, data: Dataset, index: Array
    ) -> Report:
        moved = jax.tree.map(lambda r, s, x: r + s - x, own.center, heard.message, own.params)
        center = select(heard.arrived, moved, own.center)
        problem = Subproblem(pull=jnp.asarray(penalty), anchor=center)
        solution = solve(problem, own.params, assignment, data, index=index)
        return Report(solution.params, Centred(solution.params, center), solution.metrics)

    return with_server(
        start,
        local_work,
        extrapolate,
        aggregator=aggregator,
        channel=without_memory("uplink", uplink),
        publish=publish,
        downlink=without_memory("downlink", downlink),
        clients=clients,
        equal=True,
        at_once=at_once,
    )
