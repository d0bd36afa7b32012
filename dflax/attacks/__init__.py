"""Participants that lie: in what they send, in the data that they learn from, in who they are."""

from dflax.attacks.alone import constant, gaussian, sign_flipping
from dflax.attacks.collusion import colluding
from dflax.attacks.directed import (
    hidden_deviations,
    inner_product,
    line_searched,
    little_is_enough,
)
from dflax.attacks.farthest import min_max, min_sum
from dflax.attacks.mimicry import mimic

__all__ = [
    "colluding",
    "constant",
    "gaussian",
    "hidden_deviations",
    "inner_product",
    "line_searched",
    "little_is_enough",
    "mimic",
    "min_max",
    "min_sum",
    "sign_flipping",
]


def __dir__() -> list[str]:
    return __all__
