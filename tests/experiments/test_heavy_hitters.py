"""The study of heavy hitters: its crowds are what they say, and its claims can fail."""

import numpy as np
import pytest

from experiments.studies.private import heavy_hitters as study
from experiments.tasks.crowds import BITS, aligned, codes, misaligned, party_sizes
from experiments.tools.report import Report


def test_crowds_have_the_shares_they_are_said_to_have():
    sizes = party_sizes(60_000)
    assert sum(sizes) == 60_000
    assert sizes[0] == 18_000
    items = misaligned(np.random.default_rng(0), sizes)
    parties = np.split(items, np.cumsum(sizes)[:-1])
    in_all = set.intersection(*(set(own.tolist()) for own in parties))
    # What most users of one party alone have: its 8 own items, a quarter-share of .35 each.
    for own in parties:
        kinds, counts = np.unique(own, return_counts=True)
        favourites = [
            c for v, c in zip(kinds, counts, strict=True) if v not in in_all and c > 0.02 * len(own)
        ]
        assert len(favourites) == 8
        assert sum(favourites) / len(own) == pytest.approx(0.35, abs=0.03)
    assert len(np.unique(aligned(np.random.default_rng(0), sizes))) <= 1000
    drawn = codes(np.random.default_rng(0), 1000)
    assert len(np.unique(drawn)) == 1000
    assert drawn.max() < 1 << BITS


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    scores = {}
    for (oracle, epsilon), expected in study.SHEET.items():
        for (method, sharing), f1 in zip(study.COLUMNS, expected, strict=True):
            change = 0.0 if good else {"TAP": -0.1 * sharing, "TAPS": -1.0}.get(method, 0.2)
            scores[method, oracle, epsilon, sharing] = {"f1": np.full(3, f1 + change)}
    report = Report()
    study._claims_of_methods(report, scores)
    means = {"TAP": 0.7, "TAPS": 0.7, "GTF": 0.4, "FedPEM": 0.3}
    f1 = {(method, 10): np.full(3, mean) for method, mean in means.items()}
    later = {"FedPEM": 0.65, "TAPS": 0.6} if good else {"FedPEM": 0.5, "TAPS": 0.8, "GTF": 0.6}
    f1 |= {(method, 20): np.full(3, mean) for method, mean in (means | later).items()}
    study._claims_of_numbers(report, (10, 20), f1)
    assert [claim.holds for claim in report.claims] == [good] * 10
