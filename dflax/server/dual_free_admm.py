"""Consensus ADMM on any loss without duals: a client carries the centre of its proximal step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.broadcast import both_ways, broadcast
from dflax.channel.channel import Channel
from dflax.clients import replicate, select
from dflax.data.dataset import Dataset
from dflax.federation import Assignment
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.server.protocol import Received, Report, Server, with_server

# Tells the key of a client's copy of the broadcast from the keys of its minibatches.
COPY = 1 << 30


class Extrapolated(NamedTuple):
    """What the server remembers.

    Attributes:
      broadcast: s = 2 z - z_before, like the model.
      started: `[]`, whether a round has been aggregated: before that there is nothing to send.
    """

    broadcast: Params
    started: Bool[Array, ""]


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
    rho: float,
    clients: int,
    *,
    uplink: Channel | None = None,
    downlink: Channel | None = None,
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
      rho: penalty > 0, in the loss's units over the model's squared; traceable.
      clients: n, the number of clients of the federation.
      uplink: from clients to server, without memory; default perfect. For example
        `dflax.channel.gaussian_noise(0.01)`. Whose message is lost forgets the round.
      downlink: from server to each client, without memory; default perfect. Whose copy is lost works
        around its old centre.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; the model z is `state.server.params`. `init(key, params)`
      starts all at z_0 = params; `init(key, params, starts)` takes the clients' own models `[n, ...]`,
      their proximal points of z_0 where these are known. Reporting clients count the same. Metrics:
      the loss's own and `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Lari et al., Noise-Robust and Resource-Efficient ADMM-based Federated Learning, arXiv 2409.13451
      (the elimination, for weighted least squares).
    """
    solve = solver(loss, optimizer)
    validation.real("rho", rho, low=0.0, low_open=True, scalar=True)
    validation.integer("clients", clients, low=1)
    uplink, downlink = both_ways(uplink, downlink)

    def start(
        key: Key[Array, ""], params: Params, starts: Params | None = None
    ) -> tuple[Extrapolated, Centred]:
        models = replicate(params, clients) if starts is None else starts
        validation.leading_axis("starts", models, clients)
        return Extrapolated(params, jnp.bool_(False)), Centred(models, replicate(params, clients))

    def local_work(
        assignment: Assignment, own: Centred, server: Server, data: Dataset, index: Array
    ) -> Report:
        memory = server.memory
        key = jax.random.fold_in(assignment.key, COPY)
        copies, arrived = broadcast(downlink, memory.broadcast, 1, key)
        moved = jax.tree.map(lambda r, s, x: r + s[0] - x, own.center, copies, own.params)
        center = select(arrived[0] & memory.started, moved, own.center)
        problem = Subproblem(pull=jnp.asarray(rho), anchor=center)
        solution = solve(problem, own.params, assignment, data, index=index)
        return Report(solution.params, Centred(solution.params, center), solution.metrics)

    def update(server: Server, received: Received) -> tuple[Params, Extrapolated, Metrics]:
        z = received.message
        extrapolated = jax.tree.map(lambda new, old: 2 * new - old, z, server.params)
        return z, Extrapolated(extrapolated, jnp.bool_(True)), {}

    return with_server(
        start,
        local_work,
        update,
        channel=uplink,
        clients=clients,
        equal=True,
        at_once=at_once,
    )
