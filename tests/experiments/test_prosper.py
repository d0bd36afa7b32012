"""The study of sparse coding: its bars are what they say, and its claims can fail."""

import numpy as np
import pytest

from experiments.studies.consensus import prosper
from experiments.tasks.bars import bars, errors, patches
from experiments.tools.report import Report


@pytest.mark.parametrize("kind", ["linear", "signed", "values", "max", "magnitude", "slab"])
def test_bars_meet_as_they_say(kind):
    truth, images = bars(3, kind, 4000)
    assert truth.shape == (25, 10)
    assert np.all(np.abs(truth).sum(0) == 50)
    limit = 10 if kind in ("max", "magnitude") else 0
    if limit:
        assert np.quantile(np.abs(images), 0.999) < limit + 7
    mean = images.mean()
    expected = {"linear": 4.0, "signed": 0.0, "values": 5.0, "max": 10 * (1 - 0.8**2)}
    if kind in expected:
        assert mean == pytest.approx(expected[kind], abs=0.15)


def test_errors_find_the_best_assignment():
    truth, _ = bars(0, count=5)
    order = np.random.default_rng(0).permutation(10)
    np.testing.assert_array_equal(errors(truth[:, order], truth), 0)
    np.testing.assert_array_equal(errors(-truth[:, order], truth, signs=True), 0)
    assert errors(-truth, truth).min() > 1


def test_patches_are_white_in_their_strongest_directions():
    found = patches(3000, 8, 0)
    values = np.linalg.eigvalsh(np.cov(found.T))
    np.testing.assert_allclose(values[-26:], 1, atol=1e-2)
    np.testing.assert_allclose(values[:-26], 0, atol=1e-4)
    assert prosper._localised(np.eye(64)[27], 8)
    assert not prosper._localised(np.ones(64), 8)
    grating = np.cos(np.arange(64) % 8 * np.pi / 2)
    assert prosper._peaks(grating[None], 8)[0] == pytest.approx(1)


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    own = {"bars": np.full(4, 10.0), "error": np.full(4, 0.1 if good else 0.9)}
    other = {"bars": np.full(4, 9.0), "error": np.full(4, 1.0)}
    found = {"MCA, max": own, "BSC, max": other, "TSC, signed": own, "BSC, signed": other}
    report = Report()
    prosper._claims_of_others(report, found, 4)
    assert [claim.holds for claim in report.claims] == [good, good]
