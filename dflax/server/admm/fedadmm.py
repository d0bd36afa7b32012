"""FedADMM: consensus ADMM with a server, inexact local solves and a few clients at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.data.dataset import Dataset
from dflax.local.consensus import Minimised, Nearby, Splitting
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, check_pull, solver
from dflax.local.subproblem import Subproblem
from dflax.population import Assignment
from dflax.server.admm.consensus import consensus
from dflax.server.framework.rates import Rate, check_rate


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

    def minimise(
        assignment: Assignment, own: Splitting, nearby: Nearby, data: Dataset, index: Array
    ) -> Minimised:
        problem = Subproblem(pull=jnp.asarray(pull), anchor=nearby.center)
        first = own.params if warm else nearby.shared
        solution = solve(problem, first, assignment, data, index=index)
        apart = jax.tree.map(jnp.subtract, solution.params, nearby.shared)
        residual = {"primal_residual": optax.tree.norm(apart, squared=True)}
        return Minimised(solution.params, metrics=solution.metrics | residual)

    return consensus(
        minimise, pull, clients, duals="before", remember=True, rate=server_rate, **options
    )
