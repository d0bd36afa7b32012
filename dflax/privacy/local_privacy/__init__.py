"""Local privacy: users who trust nobody report once, with noise, and frequencies are estimated."""

from dflax.privacy.local_privacy.audit import Audit, audited_epsilon
from dflax.privacy.local_privacy.binomial import binomial
from dflax.privacy.local_privacy.hadamard import hadamard_response
from dflax.privacy.local_privacy.k_rr import k_rr, prefers_k_rr
from dflax.privacy.local_privacy.local_hashing import Hashed, olh
from dflax.privacy.local_privacy.oracle import (
    Domain,
    Estimates,
    FrequencyOracle,
    domain,
    literally,
)
from dflax.privacy.local_privacy.rappor import LongitudinalOracle, rappor, rappor_budgets
from dflax.privacy.local_privacy.unary import oue, sue

__all__ = [
    "Audit",
    "Domain",
    "Estimates",
    "FrequencyOracle",
    "Hashed",
    "LongitudinalOracle",
    "audited_epsilon",
    "binomial",
    "domain",
    "hadamard_response",
    "k_rr",
    "literally",
    "olh",
    "oue",
    "prefers_k_rr",
    "rappor",
    "rappor_budgets",
    "sue",
]


def __dir__() -> list[str]:
    return __all__
