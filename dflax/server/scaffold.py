"""Control variates against client drift: SCAFFOLD and its sharpness-aware form."""

from typing import Any

from dflax.algorithm import Algorithm
from dflax.local.oracle import Loss, Oracle
from dflax.local.sam import sam
from dflax.local.solver import Optimizer
from dflax.server.framework.correction import corrected
from dflax.server.framework.rates import Rate


def scaffold(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    clients: int,
    *,
    server_rate: Rate | None = None,
    **options: Any,
) -> Algorithm:
    """SCAFFOLD: local gradients are corrected by what the client's differs from everyone's.

        dir = grad f_i(y) + c - c_i                            K steps of `optimizer` along dir from x
        x   = mean of the local models,   or x - gamma (mean over clients and steps of dir)
        c_i = mean over its steps of grad f_i(y),   c = mean of all c_i

    The second of the paper's two rules for c_i, which for SGD is also `c_i - c - (y_i - x) / (K eta)`.
    Weight decay: the c_i are made of gradients, so decay that the optimiser adds to a step is not in
    them. In the authors' code they are made of models and contain it. To reproduce that, put
    (wd / 2) |y|^2 into the loss and no decay into the optimiser.

    Clients count the same, whatever the federation's weights; c follows the changes of c_i, so a
    round costs nothing in the number of all clients.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      clients: n, the number of clients of the federation.
      server_rate: gamma, the server's step > 0, traceable; or a function of the round's number that
        returns one. For SGD of rate eta, gamma = s eta K goes s times as far as averaging; where the
        rate decays: `lambda t: s * eta(t) * K`. Default: the local models are averaged.
      **options: `aggregator`, `channel`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm`; the model is `state.server.params`, c `state.server.memory.control`, the c_i
      `state.clients.memory`, leaves `[n, ...]`. `init(key, params, gradients)` starts them at the
      clients' gradients, see `dflax.local.client_gradients`; `init(key, params)` at 0. Metrics: the
      loss's own, `drift` (mean of |y_i - x|^2) and `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(
      ...     jax.random.key(0), 4, 3, curvature_heterogeneity=1.0, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> algorithm = dx.server.scaffold(dx.data.quadratic_loss, optax.sgd(0.1), clients=4)
      >>> state = algorithm.init(jax.random.key(0), jnp.zeros(3))
      >>> state, history = dx.run(algorithm, state, federation, rounds=100, key=jax.random.key(1))
      >>> bool(jnp.allclose(state.server.params, problem.optimum, atol=1e-3))
      True

    References:
      Karimireddy et al., SCAFFOLD, arXiv 1910.06378.
    """
    return corrected(
        loss, optimizer, use_control=True, server_rate=server_rate, clients=clients, **options
    )


def fedgamma(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    clients: int,
    *,
    radius: float = 0.01,
    server_rate: Rate | None = None,
    **options: Any,
) -> Algorithm:
    """FedGamma: `scaffold` whose gradients, also in the control variates, are sharpness-aware.

    Weight decay in the optimiser is not in the control variates, see `scaffold`.

    Args:
      loss: a loss, or an `Oracle`.
      optimizer: see `scaffold`, as the arguments below.
      clients: n, the number of clients of the federation.
      radius: rho, of the perturbation, >= 0, traceable.
      server_rate: gamma, the server's step > 0; default: the local models are averaged.
      **options: see `scaffold`.

    Returns:
      An `Algorithm`, see `scaffold`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Dai et al., FedGAMMA, IEEE TNNLS 2023 (doi 10.1109/TNNLS.2023.3304453).
    """
    return corrected(
        sam(loss, radius),
        optimizer,
        use_control=True,
        server_rate=server_rate,
        clients=clients,
        **options,
    )
