"""Momentum that the server hands to its clients, with control variates and variance reduction."""

from typing import Any

from jaxtyping import Array

from dflax.algorithm import Algorithm
from dflax.local.oracle import Loss, Oracle
from dflax.local.sam import sam
from dflax.local.solver import Optimizer
from dflax.server.framework.correction import check_beta, corrected
from dflax.server.framework.rates import Rate


def fedcm(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    *,
    beta: float | Array = 0.1,
    server_rate: Rate | None = None,
    **options: Any,
) -> Algorithm:
    """FedCM, also FedAvg-M: every local step leans towards the last round's mean direction g.

        dir = beta grad f_i(y) + (1 - beta) g                  K steps of `optimizer` along dir from x
        g   = mean over clients and steps of dir
        x   = x - gamma g,   or the mean of the local models

    Weight decay: g is made of gradients, so decay that the optimiser adds to a step is not in it. In
    the authors' code g is made of models and contains the decay, which then acts as wd / beta. To
    reproduce it, put (wd / (2 beta)) |y|^2 into the loss and no decay into the optimiser. The same
    holds for all methods with this momentum: `mofedsam`, `scaffold_m`, `fedavg_m_vr`, `scaffold_m_vr`.

    beta = 1 is FedAvg. Momentum damps a large gamma; it does not lower the noise floor, and under
    partial participation it does not remove what differs between clients (`scaffold_m` does).

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      beta: weight of the new gradient in (0, 1] (optax's decay is 1 - beta), traceable.
      server_rate: gamma, the server's step > 0, traceable; or a function of the round's number that
        returns one. For SGD of rate eta, gamma = s eta K goes s times as far as averaging; where the
        rate decays: `lambda t: s * eta(t) * K`. Default: the local models are averaged.
      **options: `aggregator`, `channel`, `clients`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm`; the model is `state.server.params`, g `state.server.memory.momentum`.
      `init(key, params, gradients)` starts g at the mean of the clients' gradients, see
      `dflax.local.client_gradients`; `init(key, params)` at 0. Metrics: the loss's own, `drift` (mean
      of |y_i - x|^2), `direction_norm` (|g|) and `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Xu et al., FedCM, arXiv 2106.10874; Cheng et al., Momentum Benefits Non-IID Federated Learning,
      arXiv 2306.16504 (FedAvg-M).
    """
    check_beta(beta)
    return corrected(loss, optimizer, beta=beta, server_rate=server_rate, **options)


def mofedsam(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    *,
    radius: float = 0.1,
    beta: float | Array = 0.1,
    server_rate: Rate | None = None,
    **options: Any,
) -> Algorithm:
    """MoFedSAM: `fedcm` whose gradients are those of sharpness-aware minimisation.

        dir = beta grad f_i(y + rho grad f_i(y) / |grad f_i(y)|) + (1 - beta) g

    Weight decay in the optimiser is not in g, see `fedcm`.

    Args:
      loss: a loss, or an `Oracle`.
      optimizer: see `fedcm`, as the arguments below.
      radius: rho, of the perturbation, >= 0, traceable.
      beta: weight of the new gradient in (0, 1], traceable.
      server_rate: gamma, the server's step > 0; default: the local models are averaged.
      **options: see `fedcm`.

    Returns:
      An `Algorithm`, see `fedcm`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Qu et al., arXiv 2206.02618.
    """
    check_beta(beta)
    return corrected(sam(loss, radius), optimizer, beta=beta, server_rate=server_rate, **options)


def scaffold_m(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    clients: int,
    *,
    beta: float | Array = 0.1,
    server_rate: Rate | None = None,
    **options: Any,
) -> Algorithm:
    """SCAFFOLD-M: momentum and control variates, exact under partial participation.

        dir = beta (grad f_i(y) - c_i + c) + (1 - beta) g      K steps of `optimizer` along dir from x
        g   = mean over clients and steps of dir
        x   = x - gamma g,   or the mean of the local models
        c_i = mean over its steps of grad f_i(y),   c = mean of all c_i

    beta = 1 is SCAFFOLD. Clients count the same, whatever the federation's weights. Weight decay in the
    optimiser is neither in g nor in the c_i, see `fedcm`.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: see `fedcm`.
      clients: n, the number of clients of the federation.
      beta: weight of the new gradient in (0, 1], traceable.
      server_rate: gamma, the server's step > 0, traceable; default: the local models are averaged.
      **options: `aggregator`, `channel`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm`, see `fedcm`; c is `state.server.memory.control`, the c_i
      `state.clients.memory`. They start at the gradients given to `init`, or at 0.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Cheng et al., arXiv 2306.16504.
    """
    check_beta(beta)
    return corrected(
        loss,
        optimizer,
        beta=beta,
        use_control=True,
        server_rate=server_rate,
        clients=clients,
        **options,
    )


def fedavg_m_vr(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    *,
    beta: float | Array = 0.1,
    server_rate: Rate | None = 0.1,
    **options: Any,
) -> Algorithm:
    """FedAvg-M-VR: momentum whose gradients are compared with those at the last round's model.

        dir = grad f_i(y) + (1 - beta) (g - grad f_i(x_prev))  on the same minibatch
        g   = mean over clients and steps of dir,   x_prev = x,   x = x - gamma g

    Two gradients a local step. It lowers the noise floor of a constant step, and needs smaller steps
    than `fedcm`: gamma below 2 over the smoothness, eta K up to about 0.05, all clients in every
    round. Larger ones diverge on neural networks. Weight decay in the optimiser is not in g, see
    `fedcm`.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: see `fedcm`.
      beta: weight of the new gradient in (0, 1], traceable.
      server_rate: gamma, the server's step > 0, traceable; None averages the local models.
      **options: `aggregator`, `channel`, `clients`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm`, see `fedcm`; `init(key, params, gradients)` needs the clients' gradients at
      `params`, see `dflax.local.client_gradients`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Cheng et al., arXiv 2306.16504; Cutkosky and Orabona, arXiv 1905.10018 (STORM: one client, K = 1).
    """
    check_beta(beta)
    return corrected(
        loss, optimizer, beta=beta, use_reduction=True, server_rate=server_rate, **options
    )


def scaffold_m_vr(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    clients: int,
    *,
    beta: float | Array = 0.1,
    server_rate: Rate | None = 0.1,
    **options: Any,
) -> Algorithm:
    """SCAFFOLD-M-VR: momentum, control variates and variance reduction.

        dir = grad f_i(y) - beta (c_i - c) + (1 - beta) (g - grad f_i(x_prev))
        g   = mean over clients and steps of dir,   x_prev = x,   x = x - gamma g
        c_i = mean over its steps of grad f_i(y),   c = mean of all c_i

    Two gradients a local step. Step sizes as for `fedavg_m_vr`. Weight decay in the optimiser is
    neither in g nor in the c_i, see `fedcm`.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: see `fedcm`.
      clients: n, the number of clients of the federation.
      beta: weight of the new gradient in (0, 1], traceable.
      server_rate: gamma, the server's step > 0, traceable; None averages the local models.
      **options: `aggregator`, `channel`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm`, see `scaffold_m`; `init(key, params, gradients)` needs the clients' gradients.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Cheng et al., arXiv 2306.16504.
    """
    check_beta(beta)
    return corrected(
        loss,
        optimizer,
        beta=beta,
        use_control=True,
        use_reduction=True,
        server_rate=server_rate,
        clients=clients,
        **options,
    )
