"""Federated averaging whose clients are held back by a proximal term."""

from typing import Any

from dflax.algorithm import Algorithm
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, check_optimizer, check_pull
from dflax.local.subproblem import Subproblem
from dflax.server.framework.averaging import averaging


def fedprox(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    server_optimizer: Optimizer | None = None,
    *,
    pull: float = 0.01,
    **options: Any,
) -> Algorithm:
    """FedProx: local steps on `f_i(y) + (pull / 2) |y - x|^2` around the server's model x.

        y_i = K steps of `optimizer` on f_i + (pull / 2) |. - x|^2 from x     i in S, in parallel
        x   = server_optimizer(x, -mean of y_i - x)                           SGD(1): the mean of y_i

    pull to 0 is FedAvg. Clients that manage fewer steps take part with what they have.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      server_optimizer: the server's, applied to the negative mean change; default `optax.sgd(1.0)`.
      pull: the paper's mu > 0, with (local rate) * pull < 1; traceable.
      **options: `aggregator`, `channel`, `clients`, `keep_optimizer`, `keep_model`, `at_once`, as for
        `dflax.server.fedavg`.

    Returns:
      An `Algorithm`; the model is `state.server.params`. Metrics: the loss's own and
      `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> algorithm = dx.server.fedprox(dx.data.quadratic_loss, optax.sgd(0.5), pull=0.1)
      >>> state = algorithm.init(jax.random.key(0), jnp.zeros(3))
      >>> state, history = dx.run(algorithm, state, federation, rounds=20, key=jax.random.key(1))
      >>> bool(jnp.allclose(state.server.params, problem.optimum, atol=1e-3))
      True

    References:
      Li et al., Federated Optimization in Heterogeneous Networks, arXiv 1812.06127.
    """
    check_optimizer("optimizer", optimizer)
    check_pull("pull", pull, optimizer)
    return averaging(
        loss, optimizer, server_optimizer, lambda x: Subproblem(pull=pull, anchor=x), **options
    )
