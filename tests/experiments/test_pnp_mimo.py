"""The study of imaging: its claims can fail; the denoiser's training goes on where it was killed."""

import jax
import numpy as np
import pytest
from tasks import assert_trees_equal

from experiments.studies.consensus import pnp_mimo
from experiments.tasks import magnitude_denoiser
from experiments.tools.report import Report


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    rows = {
        pnp_mimo.PROJECTION: 15.0,
        pnp_mimo.SPARSE: 28.0 if good else 22.0,
        pnp_mimo.SPARSE_LONG: 28.5,
        pnp_mimo.PNP: 30.0 if good else 21.0,
        pnp_mimo.ZERO_SPARSE: 15.0,
        pnp_mimo.ZERO_PNP: 16.0,
    }
    found = {
        f"{name}, {noise:.0f} dB": np.full((3, 4), value)
        for name, value in rows.items()
        for noise in pnp_mimo.NOISES
    }
    report = Report()
    pnp_mimo.claims_of_methods(report, found)
    assert [claim.holds for claim in report.claims] == [good] * 7


@pytest.mark.slow
def test_a_training_goes_on_from_its_file(tmp_path):
    options = {
        "seed": 1,
        "counts_from": 4,
        "rate": 1e-3,
        "steps": 10,
        "batch": 1,
        "every": 2,
        "voxels": (4, 4, 4),
    }
    whole = magnitude_denoiser.trained(tmp_path / "whole.npz", until=6, **options)
    magnitude_denoiser.trained(tmp_path / "parts.npz", until=2, **options)
    resumed = magnitude_denoiser.trained(tmp_path / "parts.npz", until=6, **options)
    assert_trees_equal(resumed, whole)
    assert int(whole.counted) == 2
    leaves = jax.tree.leaves(whole.mean)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
