"""The study of SLIM-KL: its series are what they say, and its claims can fail."""

import numpy as np
import pytest

from experiments.studies.consensus import slim_kl
from experiments.tasks.series import TEST, standardised, waves
from experiments.tools.report import Report

CONFIG = slim_kl.Config()


@pytest.mark.slow
def test_stretches_are_dealt_in_order_and_the_last_values_are_held_out():
    series = waves(3)
    agents = series.dealt(4, 60)
    assert agents.targets.shape == (4, 60)
    np.testing.assert_array_equal(agents.mask.sum(1), 55)
    np.testing.assert_allclose(agents.targets[:, :55].ravel(), series.values[:220], rtol=1e-6)
    np.testing.assert_array_equal(agents.inputs[2, :55, 0], np.arange(110, 165))
    np.testing.assert_array_equal(series.points, np.arange(220, 240))
    other = standardised("any", series.values * 7 + 30)
    training = other.values[:-TEST]
    np.testing.assert_allclose([training.mean(), training.std()], [0, 1], atol=1e-12)
    assert other.noise == pytest.approx(0.01 / series.values[:-TEST].var(), rel=2)


def found(good, series):
    theta = np.zeros((3, 100))
    # Grid points .0505, .202 and .197, and one far away.
    theta[:, [10, 40, 39 if good else 70]] = [0.5, 0.1, 0.05]
    away = {"fused": 0.1, "agents": np.linspace(0.3, 0.5, 4)[:, None], "global": 0.1}
    if not good:
        away["fused"] = 0.4
    means = {name: series.held_out + offset * np.ones(TEST) for name, offset in away.items()}
    last = np.array([[-100.0], [-99.5], [-90.0]]) * (1 if good else 0.9)
    curves = {
        "objective": last,
        "active": np.full((3, 1), 20 if good else 60),
        "bytes_sent": np.array([[8.0], [1.5 if good else 3.0], [1.0]]),
        "bytes_uncompressed": np.full((3, 1), 8.0),
    }
    return {
        "thetas": theta,
        "curves": curves,
        "best": {"objective": -100.5, "active": 8},
        "ours": [means] * 3,
        "free": {"SE": series.held_out + 0.7},
    }


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    report = Report()
    several = [waves(0), waves(1)]
    slim_kl._claims_of_waves(report, CONFIG, [found(good, one) for one in several], several)
    assert [claim.holds for claim in report.claims] == [good] * 6
