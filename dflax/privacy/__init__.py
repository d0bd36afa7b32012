"""Differential privacy: mechanisms, their accounting, and audits of both."""

from dflax.privacy import local_privacy
from dflax.privacy.accounting import (
    LargeDelta,
    budget,
    epsilon,
    epsilon_after,
    noise_for,
    rounds_within,
)
from dflax.privacy.audit import Canaries, canary_scores, epsilon_lower_bound, with_canaries
from dflax.privacy.clipped_gradients import clipped_per_example, layer
from dflax.privacy.correlated_noise import (
    CorrelatedNoise,
    banded_noise,
    buffered_noise,
    correlated_mean,
    tree_noise,
)
from dflax.privacy.momentum_plans import MomentumPlans, momentum_plans
from dflax.privacy.noise import joint_noise, noisy, noisy_gradient
from dflax.privacy.noisy_mean import noisy_mean
from dflax.privacy.plans import Plan, clients_plan, correlated_plan, examples_plan
from dflax.privacy.poisson import PoissonSampled, places, poisson_sampled
from dflax.privacy.private_means import adaptive_private_mean, clipped_updates, private_mean
from dflax.privacy.proved_norms import proved_norms
from dflax.privacy.secure_aggregation.fixed_point import FixedPoint, fixed_point
from dflax.privacy.secure_aggregation.message_sizes import MessageBytes, message_bytes
from dflax.privacy.secure_aggregation.protocol import SecureAggregation, secure_aggregation

__all__ = [
    "Canaries",
    "CorrelatedNoise",
    "FixedPoint",
    "LargeDelta",
    "MessageBytes",
    "MomentumPlans",
    "Plan",
    "PoissonSampled",
    "SecureAggregation",
    "adaptive_private_mean",
    "banded_noise",
    "budget",
    "buffered_noise",
    "canary_scores",
    "clients_plan",
    "clipped_per_example",
    "clipped_updates",
    "correlated_mean",
    "correlated_plan",
    "epsilon",
    "epsilon_after",
    "epsilon_lower_bound",
    "examples_plan",
    "fixed_point",
    "joint_noise",
    "layer",
    "local_privacy",
    "message_bytes",
    "momentum_plans",
    "noise_for",
    "noisy",
    "noisy_gradient",
    "noisy_mean",
    "places",
    "poisson_sampled",
    "private_mean",
    "proved_norms",
    "rounds_within",
    "secure_aggregation",
    "tree_noise",
    "with_canaries",
]


def __dir__() -> list[str]:
    return __all__
