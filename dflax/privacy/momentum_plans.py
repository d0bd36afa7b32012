"""What releasing the noisy momenta of clients costs: a bound that always holds, and a smaller one."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.federation import Federation
from dflax.privacy.plans import Plan, examples_plan
from dflax.privacy.poisson import PoissonSampled

Schedule = float | Float[Array, ""] | Callable[[Array], float | Array]


class MomentumPlans(NamedTuple):
    """The same run as two plans for `epsilon`.

    Attributes:
      always: whatever the clients' clip does.
      unclipped: where no client is ever clipped; proved for that case alone.
    """

    always: Plan
    unclipped: Plan


def momentum_plans(
    federation: Federation,
    noise: float,
    rounds: int,
    *,
    beta: float,
    record_clip: Schedule = 1.0,
) -> MomentumPlans:
    """What T rounds of `server.dp_brem` release of one record, added or removed.

    Client i has the noise multiplier z = sigma b_i with b_i = p_i n_i, so the smallest client's records
    are told apart most easily, and both plans are about them. With

        a_ts = (1 - beta) beta^(t - s) R_s / R_t        of round s in the momentum of round t >= s

    - Always: a record moves the sum of round t by (R_t / b) sum_s a_ts at most, since the centre is
      public and a clip moves no two points apart. So rho = sum_t (sum_s a_ts)^2 / (2 z^2), as of T
      releases of multiplier sqrt(T / (2 rho)). Sampling does not help: the rounds that a record is in
      overlap in every momentum.
    - Without clipping: the noise of round t is a sum of independent parts, of variances in proportion to
      a_ts, each of which hides the gradient of one round. The momenta follow from those, so all of them
      cost no more than DP-SGD of multiplier z / sqrt(max_s sum_t a_ts sum_u a_tu), sampled with
      probability p. For a constant R that is z or more. Report it as the epsilon of the DP-SGD that it
      is, and not as the run's.

    Args:
      federation: whose partition is `poisson_sampled`. Give its minibatches as many places as the
        largest client has examples: then none is ever left out, which costs much at a large epsilon.
      noise: sigma > 0.
      rounds: T in [1, 20,000].
      beta: of the clients' momentum, in [0, 1).
      record_clip: R > 0, or a function of the round's number; only its ratios count.

    Returns:
      Two plans: `epsilon(plans.always, delta)` is the bound that holds.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    fix = "The unit is a record, which a federation has."
    validation.instance("federation", federation, Federation, fix)
    validation.real("noise", noise, low=0.0, low_open=True, scalar=True)
    validation.real("beta", beta, low=0.0, high=1.0, high_open=True, scalar=True)
    validation.integer("rounds", rounds, low=1, high=20_000)
    if callable(record_clip):
        validation.function("record_clip", record_clip, "It gets the round's number.", takes=1)
    else:
        validation.real("record_clip", record_clip, low=0.0, low_open=True, scalar=True)
    if not isinstance(federation.partition, PoissonSampled):
        raise ValueError(
            "federation must have Poisson-sampled minibatches, whose expected sizes do not depend on a "
            "record, got another partition. Make it with privacy.poisson_sampled(partition, p)."
        )
    multiplier = float(noise) * float(np.min(np.asarray(federation.partition.expected)))
    weights = momentum_weights(rounds, float(beta), record_clip)
    sums = weights.sum(1)
    rho = float(np.sum(np.square(sums))) / (2 * multiplier**2)
    equivalent = multiplier / float(np.sqrt(np.max(sums @ weights)))
    always = examples_plan(federation, None, rounds, amplified=False)
    return MomentumPlans(
        dataclasses.replace(always, noise_multiplier=float(np.sqrt(rounds / (2 * rho)))),
        examples_plan(federation, equivalent, rounds),
    )


def momentum_weights(
    rounds: int, beta: float, record_clip: Schedule = 1.0
) -> Float[np.ndarray, "T T"]:
    """`a_ts = (1 - beta) beta^(t - s) R_s / R_t` for s <= t, else 0."""
    clip = record_clip
    if callable(clip):
        norms = np.asarray(jax.vmap(clip)(jnp.arange(rounds, dtype=jnp.int32)), np.float64)
    else:
        norms = np.full(rounds, float(clip))
    lag = np.subtract.outer(np.arange(rounds), np.arange(rounds))
    kept = np.where(lag >= 0, (1 - beta) * float(beta) ** np.maximum(lag, 0), 0.0)
    return kept * norms / norms[:, None]
