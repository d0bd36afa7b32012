"""FedExP: a server that takes longer steps where clients' changes point apart."""

import jax.numpy as jnp
import optax
from jaxtyping import Array

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.local import Loss, Optimizer, Oracle
from dflax.server import local_change, with_server


def fedexp(
    loss: Loss | Oracle, optimizer: Optimizer, epsilon: float | Array = 1e-3, **options
) -> Algorithm:
    """FedAvg with a server step by extrapolation: the more clients disagree, the further.

        d_i  = y_i - x,   y_i = K steps of `optimizer` on f_i from x           i in S, in parallel
        rate = max(1, mean |d_i|^2 / (2 (|mean d_i|^2 + epsilon)))
        x    = x + rate mean d_i

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser; or a function of the round's number that returns one.
      epsilon: > 0, in the units of the squared change; traceable. It holds the step back where the
        changes cancel.
      **options: `aggregator`, `channel`, `clients`, `at_once`, as for `dflax.server.fedavg`. A channel
        sends the squared length along with the change.

    Returns:
      An `Algorithm` on a `FederatedState`; the model is `state.server.params`. The metric
      `server_rate` is the step taken. The paper evaluates the mean of the last two rounds' models,
      which oscillate less.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Jhunjhunwala et al., FedExP: Speeding Up Federated Averaging via Extrapolation, arXiv 2301.09604.
    """
    validation.real("epsilon", epsilon, low=0.0, low_open=True, scalar=True)
    change = local_change(loss, optimizer)

    def work(*given):
        report = change(*given)
        squared = optax.tree.norm(report.message, squared=True)
        return report._replace(message={"change": report.message, "squared": squared})

    def update(server, received):
        mean, squared = received.message["change"], received.message["squared"]
        length = optax.tree.norm(mean, squared=True)
        rate = jnp.maximum(1.0, squared / (2 * (length + epsilon)))
        return optax.tree.add_scale(server.params, rate, mean), (), {"server_rate": rate}

    def message(params):
        return {"change": params, "squared": optax.tree.norm(params, squared=True)}

    return with_server(lambda key, params: ((), ()), work, update, message=message, **options)
