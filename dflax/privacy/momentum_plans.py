"""What releasing the noisy momenta of clients costs: a bound that always holds, and a smaller one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation

Schedule = float | Float[Array, ""] | Callable[[Array], float | Array]


class MomentumCost(NamedTuple):
    """The privacy of one record after T rounds, by two bounds.

    Attributes:
      rho: of zero-concentrated differential privacy, whatever the clients' clip does.
      epsilon: that follows from `rho`: the bound that always holds.
      unclipped_epsilon: where no client is ever clipped: that of DP-SGD with the same sampling and
        `multiplier`. It is proved for that case alone.
      multiplier: the noise multiplier of that DP-SGD, sigma b or a little more.
      delta: that both are for.
    """

    rho: float
    epsilon: float
    unclipped_epsilon: float
    multiplier: float
    delta: float


def momentum_weights(
    rounds: int, beta: float, record_clip: Schedule = 1.0
) -> Float[np.ndarray, "T T"]:
    """`a_ts = (1 - beta) beta^(t - s) R_s / R_t` for s <= t, else 0: round s in the momentum of round t."""
    clip = record_clip
    if callable(clip):
        norms = np.asarray(jax.vmap(clip)(jnp.arange(rounds, dtype=jnp.int32)), np.float64)
    else:
        norms = np.full(rounds, float(clip))
    lag = np.subtract.outer(np.arange(rounds), np.arange(rounds))
    kept = np.where(lag >= 0, (1 - beta) * float(beta) ** np.maximum(lag, 0), 0.0)
    return kept * norms / norms[:, None]


def momentum_cost(
    noise_multiplier: float,
    *,
    beta: float,
    probability: float,
    rounds: int,
    delta: float,
    record_clip: Schedule = 1.0,
) -> MomentumCost:
    """What T rounds of `server.dp_brem` cost one record of a client with noise multiplier z = sigma b.

    b = p n_i, so the smallest client has the smallest z, and the federation's cost is that client's.
    With a_ts the weight of round s in the momentum of round t:

    - Always: a record moves the sum of round t by (R_t / b) sum_s a_ts at most, since the centre is
      public and a clip moves no two points apart. So rho = sum_t (sum_s a_ts)^2 / (2 z^2). Sampling
      does not help: which rounds a record is in cannot be told apart.
    - Without clipping: the noise of round t is a sum of independent parts, of variances in proportion to
      a_ts, each of which hides the gradient of one round. The momenta follow from those, so all of them
      cost no more than DP-SGD of noise multiplier z / sqrt(max_s sum_t a_ts sum_u a_tu), sampled with
      probability p. For a constant R that is z or more.

    Args:
      noise_multiplier: z > 0.
      beta: of the clients' momentum, in [0, 1).
      probability: p in (0, 1] of the Poisson sample of records.
      rounds: T >= 1.
      delta: in (0, 1).
      record_clip: R, or a function of the round's number; only its ratios count.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: without the package dp-accounting.
    """
    validation.real("noise_multiplier", noise_multiplier, low=0.0, low_open=True, scalar=True)
    validation.real("beta", beta, low=0.0, high=1.0, high_open=True, scalar=True)
    validation.probability("probability", probability, low_open=True)
    validation.integer("rounds", rounds, low=1, high=20_000)
    validation.probability("delta", delta, low_open=True, high_open=True)
    if not callable(record_clip):
        validation.real("record_clip", record_clip, low=0.0, low_open=True, scalar=True)
    weights = momentum_weights(rounds, float(beta), record_clip)
    sums = weights.sum(1)
    z = float(noise_multiplier)
    rho = float(np.sum(np.square(sums)) / (2 * z**2))
    multiplier = float(z / np.sqrt(np.max(sums @ weights)))
    return MomentumCost(
        rho,
        _epsilon(lambda event: event.ZCDpEvent(rho), delta),
        _epsilon(
            lambda event: event.SelfComposedDpEvent(
                event.PoissonSampledDpEvent(probability, event.GaussianDpEvent(multiplier)), rounds
            ),
            delta,
        ),
        multiplier,
        float(delta),
    )


def _epsilon(event: Callable[..., object], delta: float) -> float:
    """Epsilon of an event by its Renyi divergences."""
    try:
        from dp_accounting import dp_event, rdp
    except ImportError as error:
        raise ImportError(
            "momentum_cost needs dp-accounting. Install dflax[privacy], or dp-accounting itself."
        ) from error
    accountant = rdp.RdpAccountant()
    accountant.compose(event(dp_event))
    return float(accountant.get_epsilon(delta))
