"""What the averaging methods share: local work on a problem around the model, then the mean change."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from dflax.algorithm import Algorithm, Metrics, Params
from dflax.data.dataset import Dataset
from dflax.federation import Assignment
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, check_optimizer, optimizer_at, solver
from dflax.local.subproblem import Subproblem
from dflax.server.protocol import Received, Report, Server, with_server


def averaging(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    server_optimizer: Optimizer | None,
    problem: Callable[[Params], Subproblem] = lambda params: Subproblem(),
    **options: Any,
) -> Algorithm:
    """A method without memory on the clients, whose server steps along the mean change.

        y_i = K steps of `optimizer` on problem(x)                            i in S, in parallel
        x   = server_optimizer(x, -mean of y_i - x)                           SGD(1): the mean of y_i

    Args:
      loss: a loss, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      server_optimizer: the server's; None is `optax.sgd(1.0)`.
      problem: from the server's model to what the clients minimise.
      **options: of `with_server`.

    Returns:
      An `Algorithm`; the server's optimiser is `state.server.memory`.
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check_optimizer("server_optimizer", server_optimizer)
    solve = solver(loss, optimizer)

    def start(key: Key[Array, ""], params: Params) -> tuple[PyTree[Array], tuple[()]]:
        return optimizer_at(server_optimizer, jnp.int32(0)).init(params), ()

    def local_work(
        assignment: Assignment, own: tuple[()], server: Server, data: Dataset, index: Array
    ) -> Report:
        solution = solve(problem(server.params), server.params, assignment, data, index=index)
        change = jax.tree.map(jnp.subtract, solution.params, server.params)
        return Report(change, own, solution.metrics)

    def update(server: Server, received: Received) -> tuple[Params, PyTree[Array], Metrics]:
        descent = optimizer_at(server_optimizer, received.number)
        slope = jax.tree.map(jnp.negative, received.message)
        updates, memory = descent.update(slope, server.memory, server.params)
        return optax.apply_updates(server.params, updates), memory, {}

    return with_server(start, local_work, update, **options)
