"""Active learning: which labels clients buy, and rounds of training and buying."""

from dflax.active.acquisition import (
    Acquisition,
    Judge,
    Query,
    core_set,
    divergence,
    entropy,
    ksas,
    margin,
    random,
)
from dflax.active.rounds import ActiveRounds, Campaign, Labels, active_learning

__all__ = [
    "Acquisition",
    "ActiveRounds",
    "Campaign",
    "Judge",
    "Labels",
    "Query",
    "active_learning",
    "core_set",
    "divergence",
    "entropy",
    "ksas",
    "margin",
    "random",
]


def __dir__() -> list[str]:
    return __all__
