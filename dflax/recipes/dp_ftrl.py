"""DP-FTRL: private for whole clients by noise that cancels from round to round, without sampling."""

from jaxtyping import Array

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.local import Loss, Optimizer, Oracle
from dflax.privacy import CorrelatedNoise, correlated_mean
from dflax.server.fedavg import fedavg


def dp_ftrl(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    noise: CorrelatedNoise,
    norm: float | Array,
    noise_multiplier: float | Array,
    expected: float | Array,
    **options,
) -> Algorithm:
    """FedAvg on clipped changes whose sum over the rounds bears little noise.

        y_i = K steps of `optimizer` on f_i from x                                   i in S, in parallel
        d   = (sum_i (y_i - x) min(1, R / |y_i - x|) + z R s (C^-1 Z)_t) / n
        x   = server_optimizer(x, -d)                                               SGD(1): x + d

    With SGD(1) the model is its start plus the noisy sum of all changes, the leader that
    follow-the-regularised-leader follows. Who takes part when is fixed beforehand:
    `participation.from_table`. What a run spends `dflax.privacy.correlated_plan` says.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser; or a function of the round's number that returns one.
      noise: C, by `dflax.privacy.tree_noise`, `banded_noise` or `buffered_noise`.
      norm: R > 0, traceable.
      noise_multiplier: z >= 0, traceable.
      expected: n > 0, how many clients report; traceable.
      **options: `server_optimizer`, `channel`, `clients`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm` on a `FederatedState`; the model is `state.server.params`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Kairouz et al., Practical and Private (Deep) Learning without Sampling or Shuffling, arXiv
      2103.00039; Choquette-Choo et al., (Amplified) Banded Matrix Factorization, arXiv 2306.08153.
    """
    validation.instance("noise", noise, CorrelatedNoise, "For example privacy.tree_noise(64).")
    rule = correlated_mean(noise, norm, noise_multiplier, expected)
    return fedavg(loss, optimizer, aggregator=rule, **options)
