"""Differential privacy: mechanisms, their accounting, and audits of both."""

from dflax.privacy.clipped_gradients import clipped_per_example, layer
from dflax.privacy.poisson import PoissonSampled, places, poisson_sampled
from dflax.privacy.secure_aggregation.fixed_point import FixedPoint, fixed_point
from dflax.privacy.secure_aggregation.message_sizes import MessageBytes, message_bytes
from dflax.privacy.secure_aggregation.protocol import SecureAggregation, secure_aggregation

__all__ = [
    "FixedPoint",
    "MessageBytes",
    "PoissonSampled",
    "SecureAggregation",
    "clipped_per_example",
    "fixed_point",
    "layer",
    "message_bytes",
    "places",
    "poisson_sampled",
    "secure_aggregation",
]


def __dir__() -> list[str]:
    return __all__
