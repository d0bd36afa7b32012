"""Participants that lie: in what they send, in the data that they learn from, in who they are."""

from dflax.attacks.against import against_krum, against_trimmed_mean
from dflax.attacks.alone import constant, gaussian, one_sided, sign_flipping, uniform, zeroed
from dflax.attacks.collusion import colluding
from dflax.attacks.directed import (
    hidden_deviations,
    inner_product,
    line_searched,
    little_is_enough,
)
from dflax.attacks.farthest import min_max, min_sum
from dflax.attacks.mimicry import learned_mimic, mimic
from dflax.attacks.poisoned import (
    backdoor,
    backdoor_success,
    flipped_labels,
    owned,
    rotated_labels,
    swap_success,
    swapped_labels,
    triggered,
)
from dflax.attacks.sybils import one_adversary, with_sybils

__all__ = [
    "against_krum",
    "against_trimmed_mean",
    "backdoor",
    "backdoor_success",
    "colluding",
    "constant",
    "flipped_labels",
    "gaussian",
    "hidden_deviations",
    "inner_product",
    "learned_mimic",
    "line_searched",
    "little_is_enough",
    "mimic",
    "min_max",
    "min_sum",
    "one_adversary",
    "one_sided",
    "owned",
    "rotated_labels",
    "sign_flipping",
    "swap_success",
    "swapped_labels",
    "triggered",
    "uniform",
    "with_sybils",
    "zeroed",
]


def __dir__() -> list[str]:
    return __all__
