"""DiLoCo: workers far apart that train for long on their own, and average by momentum."""

import optax

from dflax.algorithm import Algorithm
from dflax.local import Loss, Optimizer, Oracle
from dflax.server.fedavg import fedavg


def diloco(
    loss: Loss | Oracle,
    clients: int,
    optimizer: Optimizer | None = None,
    server_optimizer: Optimizer | None = None,
    **options,
) -> Algorithm:
    """FedAvg with AdamW on the workers, which keep its state, and Nesterov's momentum on the server.

        y_i = K steps of AdamW on f_i from x, its state as the last round left it      all i
        x   = SGD(0.7) with Nesterov momentum 0.9 along mean of y_i - x

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      clients: n, the number of workers; each keeps an optimiser's state from round to round.
      optimizer: the inner one; default AdamW at 4e-4 with weight decay 0.1. Schedules that count
        inner steps go on from round to round, as the state does.
      server_optimizer: the outer one; default as above.
      **options: `aggregator`, `channel`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm` on a `FederatedState`; the model is `state.server.params`, the inner states
      `state.clients.memory`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Douillard et al., DiLoCo: Distributed Low-Communication Training of Language Models,
      arXiv 2311.08105.
    """
    inner = optax.adamw(4e-4, weight_decay=0.1) if optimizer is None else optimizer
    outer = optax.sgd(0.7, 0.9, nesterov=True) if server_optimizer is None else server_optimizer
    return fedavg(loss, inner, outer, keep_optimizer=True, clients=clients, **options)
