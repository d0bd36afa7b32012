"""What the study of intelligence per watt concludes of made-up runs."""

import numpy as np
import pytest

from experiments.studies.inference import _ipw_runs, ipw
from experiments.tasks import digit_sizes
from experiments.tools.report import Report

SHARES = np.linspace(0, 1, 6)


def routed(bend=0.0, cloud=1.0, flip=0.99, learned=0.99):
    """One seed's routers."""
    oracle = np.array([0.8, 0.7, 0.6])
    lines = oracle[:, None] * SHARES + bend * SHARES * (1 - SHARES)
    quality = {"cloud": cloud, "flip": flip, "flip retry": 1.0}
    return {
        "oracle": oracle,
        "local": 0.9,
        "draws": {
            error: {
                "savings": np.repeat(lines[..., None], 3, -1),
                "quality": np.where(SHARES < 1, value, 1.0)[:, None].repeat(3, 1),
            }
            for error, value in quality.items()
        },
        "frontier": {"savings": np.array([0.0, 0.75]), "quality": np.array([1.0, learned])},
        "single": {"savings": 0.8, "quality": 0.98},
    }


def concluded(one):
    report = Report()
    ipw._routers(report, [one])
    return [claim.holds for claim in report.claims]


def test_routers_as_they_should_be_bear_out_all_claims():
    assert concluded(routed()) == [True, True, True]


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({"bend": 0.1}, [False, True, True]),
        ({"cloud": 0.999}, [True, False, True]),
        ({"flip": 1.0}, [True, False, True]),
        ({"learned": 0.98}, [True, True, False]),
    ],
)
def test_each_claim_of_routers_rests_on_its_own_numbers(change, holds):
    assert concluded(routed(**change)) == holds


def test_the_best_of_several_is_held_against_the_best_single_model():
    models = len(digit_sizes.NAMES)
    found = {
        "right": np.zeros((1, models, 4), np.float32),
        "labels": np.zeros((1, 4), np.int32),
    }
    for right, holds in (([[1, 1, 0, 0], [0, 0, 1, 0]], True), ([[1, 1, 0, 0]] * 2, False)):
        found["right"][0, :2] = right
        report = Report()
        ipw._coverage(report, found)
        assert [claim.holds for claim in report.claims] == [holds, True]


def test_sizes_are_what_their_names_say():
    counts = [digit_sizes.parameters(hidden) for hidden in digit_sizes.SIZES.values()]
    wanted = [float(name[:-1]) for name in digit_sizes.SIZES]
    np.testing.assert_allclose(np.array(counts) / 1000, wanted, rtol=0.1)


def test_a_bound_by_memory_takes_its_reads_and_a_fixed_cost():
    latency, power = _ipw_runs.costs_on(1e6, 1e-5)
    busy = 4e6 / (0.7 * np.array([0.1e12, 0.5e12, 8e12]))
    np.testing.assert_allclose(latency, 1e-5 + busy, rtol=1e-5)
    idle, peak = np.array([1.0, 6.0, 100.0]), np.array([15.0, 60.0, 700.0])
    np.testing.assert_allclose(power, idle + (peak - idle) * busy / (1e-5 + busy), rtol=1e-5)
