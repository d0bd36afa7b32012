"""What the averaging methods share: local work on a problem around the model, then the mean change."""

from collections.abc import Callable
from typing import Any

from dflax.algorithm import Algorithm, Params
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer
from dflax.local.subproblem import Subproblem
from dflax.server.descent import descent, local_change
from dflax.server.with_server import with_server


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
    start, update = descent(server_optimizer)
    return with_server(start, local_change(loss, optimizer, problem), update, **options)
