"""Hidden units of different models brought into one order: symmetries, assignment, matching."""

from dflax.matching.assignment import assign, assign_by_optax, assign_on_host
from dflax.matching.derived import activations, symmetries, verify
from dflax.matching.matching import Matching, by_activations, fixed_units
from dflax.matching.symmetries import (
    Place,
    Symmetries,
    identity,
    permute,
    random_permutations,
    widths_of,
)
from dflax.matching.weights import by_weights

__all__ = [
    "Matching",
    "Place",
    "Symmetries",
    "activations",
    "assign",
    "assign_by_optax",
    "assign_on_host",
    "by_activations",
    "by_weights",
    "fixed_units",
    "identity",
    "permute",
    "random_permutations",
    "symmetries",
    "verify",
    "widths_of",
]


def __dir__() -> list[str]:
    return __all__
