"""Differential privacy: mechanisms, their accounting, and audits of both."""

from dflax.privacy import local_privacy
from dflax.privacy.clipped_gradients import clipped_per_example, layer
from dflax.privacy.poisson import PoissonSampled, places, poisson_sampled

__all__ = [
    "PoissonSampled",
    "clipped_per_example",
    "layer",
    "local_privacy",
    "places",
    "poisson_sampled",
]


def __dir__() -> list[str]:
    return __all__
