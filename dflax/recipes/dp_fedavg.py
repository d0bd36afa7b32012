"""DP-FedAvg: federated averaging that is private for whole clients."""

import jax.numpy as jnp
from jaxtyping import Array

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.local import Loss, Optimizer, Oracle
from dflax.privacy import adaptive_private_mean, private_mean
from dflax.server.fedavg import fedavg


def dp_fedavg(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    norm: float | Array,
    noise_multiplier: float | Array,
    expected: float | Array,
    quantile: float | Array | None = None,
    **options,
) -> Algorithm:
    """FedAvg on clipped changes, with Gaussian noise on their sum.

        y_i = K steps of `optimizer` on f_i from x                                   i in S, in parallel
        d   = (sum_i (y_i - x) min(1, R / |y_i - x|) + N(0, (z R)^2)) / n
        x   = server_optimizer(x, -d)                                               SGD(1): x + d

    What a run spends `dflax.privacy.clients_plan(federation, z, rounds)` says; take
    `participation.bernoulli(q)` and n = q times the clients.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser; or a function of the round's number that returns one.
      norm: R > 0; with a `quantile` that of the first round; traceable.
      noise_multiplier: z >= 0, traceable.
      expected: n > 0, how many clients are expected to report; traceable.
      quantile: in (0, 1), traceable: R then follows this quantile of the changes' lengths, by noisy
        counts of deviation max(n / 20, z). None: R stays.
      **options: `server_optimizer`, `channel`, `clients`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm` on a `FederatedState`; the model is `state.server.params`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      McMahan et al., Learning Differentially Private Recurrent Language Models, arXiv 1710.06963;
      Andrew et al., Differentially Private Learning with Adaptive Clipping, arXiv 1905.03871.
    """
    validation.real("norm", norm, low=0.0, low_open=True, scalar=True)
    validation.real("noise_multiplier", noise_multiplier, low=0.0, scalar=True)
    validation.real("expected", expected, low=0.0, low_open=True, scalar=True)
    if quantile is None:
        rule = private_mean(norm, noise_multiplier, expected)
    else:
        count = jnp.maximum(jnp.asarray(expected) / 20, noise_multiplier)
        rule = adaptive_private_mean(
            quantile, noise_multiplier, expected, count_deviation=count, start=norm
        )
    return fedavg(loss, optimizer, aggregator=rule, **options)
