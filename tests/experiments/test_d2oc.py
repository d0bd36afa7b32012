"""The study of D2OC: its areas are what they say, and its claims can fail."""

import numpy as np
import pytest

from experiments.studies.robots import d2oc
from experiments.tasks.coverage import area, areas, distances
from experiments.tools.report import Report


def test_areas_are_three_gaussians_and_uniform_starts():
    one, several = area(7), areas(range(6, 9))
    assert one.samples.shape == (400, 2)
    assert one.places.shape == (4, 2)
    np.testing.assert_array_equal(several.samples[1], one.samples)
    np.testing.assert_array_equal(several.places[1], one.places)
    upper = one.samples[:, 0] > 0.5
    assert upper.mean() == pytest.approx(0.5, abs=0.08)
    np.testing.assert_allclose(one.samples[upper].mean(0), [0.75, 0.6], atol=0.03)
    assert distances(several.samples, several.samples).max() < 1e-6


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    found = {
        "D2OC": np.array([0.04, 0.05 if good else 0.19]),
        "SMC": np.array([0.09, 0.08]),
        "strips": np.array([0.18, 0.18]),
        "D2OC, no sharing": np.array([0.2, 0.2 if good else 0.05]),
        "D2OC, all at once": np.array([0.06, 0.06]),
    }
    report = Report()
    d2oc._claims_of_methods(report, found)
    assert [claim.holds for claim in report.claims] == [good] * 4
