"""What pure-ldp and multi-freq-ldpy estimate from given reports of frequency oracles."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from multi_freq_ldpy.long_freq_est.L_SUE import L_SUE_Aggregator_MI
from multi_freq_ldpy.pure_frequency_oracles.GRR import GRR_Aggregator_MI
from multi_freq_ldpy.pure_frequency_oracles.UE import UE_Aggregator_MI
from multi_freq_ldpy.pure_frequency_oracles.Variance_PURE import VAR_Pure
from pure_ldp.frequency_oracles.direct_encoding import DEServer
from pure_ldp.frequency_oracles.hadamard_response import HadamardResponseServer
from pure_ldp.frequency_oracles.local_hashing import LHServer
from pure_ldp.frequency_oracles.unary_encoding import UEServer


def aggregated(server: Any, reports: Iterable, size: int) -> list[float]:
    """Frequencies that a server of pure-ldp estimates from reports, one after another."""
    for report in reports:
        server.aggregate(report)
    # Values are counted from 1 there.
    found = [server.estimate(value, suppress_warnings=True) for value in range(1, size + 1)]
    return [float(one) / server.n for one in found]


def bits(reports: list, size: int) -> np.ndarray:
    """Reports of bits, each of which came as one number."""
    return np.asarray(reports)[:, None] >> np.arange(size) & 1


def direct(epsilon: float, size: int, reports: list) -> list[float]:
    """k-RR."""
    return aggregated(DEServer(epsilon, size), reports, size)


def unary(epsilon: float, size: int, reports: list, optimised: bool) -> list[float]:
    """OUE or SUE."""
    return aggregated(UEServer(epsilon, size, use_oue=optimised), bits(reports, size), size)


def hashing(epsilon: float, size: int, counts: list, users: int) -> list[float]:
    """OLH from the counts of support: the hash functions are not the same."""
    server = LHServer(epsilon, size, use_olh=True)
    server.aggregated_data, server.n = np.asarray(counts, float), users
    values = range(1, size + 1)
    return [server.estimate(v, suppress_warnings=True) / users for v in values]


def hadamard(epsilon: float, size: int, reports: list, places: list) -> list[float]:
    """Hadamard response; `places` says which of its values stands where each of ours does."""
    server = HadamardResponseServer(epsilon, size)
    if epsilon > 1:
        server.hr.permute = np.asarray(places)
        server.hr.reverse = np.argsort(places)
    return aggregated(server, reports, size)


def clipped_direct(epsilon: float, size: int, reports: list) -> list[float]:
    """k-RR of multi-freq-ldpy, clipped at 0 and normalised."""
    return list(map(float, GRR_Aggregator_MI(reports, size, epsilon)))


def clipped_unary(epsilon: float, size: int, reports: list, optimised: bool) -> list[float]:
    """OUE or SUE of multi-freq-ldpy, clipped at 0 and normalised."""
    return list(map(float, UE_Aggregator_MI(bits(reports, size), epsilon, optimised)))


def clipped_rappor(permanent: float, first: float, size: int, reports: list) -> list[float]:
    """L-SUE of multi-freq-ldpy, clipped at 0 and normalised."""
    return list(map(float, L_SUE_Aggregator_MI(bits(reports, size), permanent, first)))


def variance(p: float, q: float, users: int, frequency: list) -> list[float]:
    """Of a pure protocol, after multi-freq-ldpy."""
    return [float(VAR_Pure(p, q, users, f)) for f in frequency]


def measure(cases: list) -> dict[str, list]:
    """What each of `(function, arguments)` gives."""
    return {"found": [globals()[name](**arguments) for name, arguments in cases]}
