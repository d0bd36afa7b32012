"""Federated averaging of sharpness-aware local steps."""

from typing import Any

from dflax.algorithm import Algorithm
from dflax.local.oracle import Loss, Oracle
from dflax.local.sam import sam
from dflax.local.solver import Optimizer
from dflax.server.framework.averaging import averaging


def fedsam(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    server_optimizer: Optimizer | None = None,
    *,
    radius: float = 0.1,
    **options: Any,
) -> Algorithm:
    """FedSAM: federated averaging whose clients take their gradients at the worst point nearby.

        q   = grad f_i(y + rho grad f_i(y) / |grad f_i(y)|)                   on one minibatch
        y_i = K steps of `optimizer` on q from x                              i in S, in parallel
        x   = server_optimizer(x, -mean of y_i - x)                           SGD(1): the mean of y_i

    Two gradients a local step; rho = 0 is FedAvg.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      server_optimizer: the server's, applied to the negative mean change; default `optax.sgd(1.0)`.
      radius: rho, of the perturbation, >= 0, traceable.
      **options: `aggregator`, `channel`, `clients`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm`; the model is `state.server.params`. Metrics: the loss's own and
      `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Qu et al., Generalized Federated Learning via Sharpness Aware Minimization, arXiv 2206.02618;
      Caldarola et al., arXiv 2203.11834.
    """
    return averaging(sam(loss, radius), optimizer, server_optimizer, **options)
