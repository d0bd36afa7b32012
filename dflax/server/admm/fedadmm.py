"""FedADMM: consensus ADMM with a server, inexact local solves and a few clients at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.clients import replicate
from dflax.data.dataset import Dataset
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, check_pull, solver
from dflax.local.subproblem import Subproblem
from dflax.models.averaged import of_weights
from dflax.population import Assignment
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.rates import Rate, check_rate, rate_at
from dflax.server.framework.with_server import with_server


class Primal(NamedTuple):
    """What a client remembers, leaves `[n, ...]`.

    Attributes:
      params: x_i, its last local model.
      dual: y_i, unscaled: at the optimum -grad f_i.
    """

    params: Params
    dual: Params


def fedadmm(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    clients: int,
    *,
    pull: float = 0.1,
    server_rate: Rate | None = None,
    warm: bool = False,
    **options: Any,
) -> Algorithm:
    """FedADMM: the augmented Lagrangian of consensus, solved inexactly by those who take part.

        x_i = K steps of `optimizer` on f_i(x) + <y_i, x - z> + (pull / 2) |x - z|^2
        y_i = y_i + pull (x_i - z)                                            i in S, in parallel
        z   = z + server_rate * mean over S of the change of x_i + y_i / pull

    The default rate |S| / n makes z the mean over ALL clients of x_i + y_i / pull, the exact z-step of
    consensus ADMM in which absent clients keep their x_i and y_i (Wang et al.); 1 follows those who
    take part (Gong et al.). Duals are made of models, so weight decay in the optimiser is in them.
    With all of them and local solves from z it is `feddyn`. Running statistics ("batch_stats") have
    neither dual nor penalty.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      clients: n, the number of clients of the federation.
      pull: penalty > 0, with (local rate) * (pull + weight decay) < 1; traceable.
      server_rate: > 0, traceable; or a function of the round's number that returns one; default
        |S| / n.
      warm: whether local steps start at the client's last model rather than at z.
      **options: `aggregator`, `channel`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm`; z is `state.server.params`, x_i and y_i are `state.clients.memory`. Metrics: the
      loss's own, `primal_residual` (mean over S of |x_i - z|^2) and `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Gong et al., FedADMM: A Robust Federated Deep Learning Framework, arXiv 2204.03529;
      Wang et al., FedADMM: A Federated Primal-Dual Algorithm, arXiv 2203.15104.
    """
    solve = solver(loss, optimizer)
    check_pull("pull", pull, optimizer)
    validation.integer("clients", clients, low=1)
    validation.flag("warm", warm)
    if server_rate is not None:
        check_rate("server_rate", server_rate, low=0.0, low_open=True)

    def start(key: Key[Array, ""], params: Params) -> tuple[tuple[()], Primal]:
        # Duals are sums over many rounds: float32 also for models in half precision.
        dual = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), params
        )
        return (), replicate(Primal(params, dual), clients)

    def local_work(
        assignment: Assignment, own: Primal, server: Server, data: Dataset, index: Array
    ) -> Report:
        z = server.params
        shift = jax.tree.map(lambda y, leaf: y.astype(leaf.dtype), own.dual, z)
        problem = Subproblem(shift=shift, pull=pull, anchor=z)
        first = own.params if warm else z
        solution = solve(problem, first, assignment, data, index=index)
        apart = jax.tree.map(jnp.subtract, solution.params, z)
        risen = of_weights(apart)
        dual = jax.tree.map(lambda y, d: y + pull * d, own.dual, risen)
        # The change of x_i + y_i / pull, in which that of the dual is x_i - z.
        message = jax.tree.map(
            lambda new, old, d: new - old + d, solution.params, own.params, risen
        )
        residual = {"primal_residual": optax.tree.norm(apart, squared=True)}
        return Report(message, Primal(solution.params, dual), solution.metrics | residual)

    def update(server: Server, received: Received) -> tuple[Params, tuple[()], Metrics]:
        rate = received.share if server_rate is None else rate_at(server_rate, received.number)
        return (
            jax.tree.map(
                lambda z, d: z + jnp.asarray(rate, z.dtype) * d, server.params, received.message
            ),
            (),
            {},
        )

    return with_server(start, local_work, update, clients=clients, equal=True, **options)
