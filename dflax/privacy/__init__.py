"""Differential privacy: mechanisms, their accounting, and audits of both."""

from dflax.privacy.clipped_gradients import clipped_per_example, layer
from dflax.privacy.momentum_accounting import MomentumCost, momentum_cost
from dflax.privacy.noise import noisy, noisy_gradient
from dflax.privacy.poisson import PoissonSampled, places, poisson_sampled
from dflax.privacy.proved_norms import proved_norms
from dflax.privacy.secure_aggregation.fixed_point import FixedPoint, fixed_point
from dflax.privacy.secure_aggregation.message_sizes import MessageBytes, message_bytes
from dflax.privacy.secure_aggregation.protocol import SecureAggregation, secure_aggregation

__all__ = [
    "FixedPoint",
    "MessageBytes",
    "MomentumCost",
    "PoissonSampled",
    "SecureAggregation",
    "clipped_per_example",
    "fixed_point",
    "layer",
    "message_bytes",
    "momentum_cost",
    "noisy",
    "noisy_gradient",
    "places",
    "poisson_sampled",
    "proved_norms",
    "secure_aggregation",
]


def __dir__() -> list[str]:
    return __all__
