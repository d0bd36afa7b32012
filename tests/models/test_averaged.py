"""Running statistics among averaged models: found, warned of, kept out of duals and perturbations."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.gossip import Aged
from dflax.local.sam import perturbed
from dflax.local.subproblem import Subproblem
from dflax.models import AveragedStatistics
from dflax.models.averaged import holds_statistics, of_weights, warn_of_averaging

VARIABLES = {"params": jnp.full(3, 2.0), "batch_stats": {"mean": jnp.full(2, 5.0)}}


def test_statistics_are_found_wherever_they_are():
    for tree in (VARIABLES, {"tracker": VARIABLES}, (1.0, VARIABLES), Aged(VARIABLES, jnp.ones(1))):
        assert holds_statistics(tree)
    for tree in (VARIABLES["params"], {"params": jnp.ones(1), "batch_stats": {"mean": None}}):
        assert not holds_statistics(tree)


def test_the_warning_says_why_and_what_to_do_and_has_a_category():
    with pytest.warns(AveragedStatistics, match=r"of none.*Either do this, estimate.*GroupNorm"):
        warn_of_averaging(VARIABLES, remedies=("do this",))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_of_averaging(VARIABLES["params"])
        assert not said
        warn_of_averaging(VARIABLES)
        assert [warning.category for warning in said] == [AveragedStatistics]
        warnings.simplefilter("ignore", AveragedStatistics)
        warn_of_averaging(VARIABLES)
    assert len(said) == 1


def test_of_a_change_the_weights_move():
    moved = of_weights(VARIABLES)
    np.testing.assert_array_equal(moved["params"], VARIABLES["params"])
    np.testing.assert_array_equal(moved["batch_stats"]["mean"], 0.0)
    assert of_weights(VARIABLES["params"]) is VARIABLES["params"]


def test_subproblems_and_perturbations_leave_statistics_alone():
    zeros = jax.tree.map(jnp.zeros_like, VARIABLES)
    problem = Subproblem(scale=3.0, shift=VARIABLES, pull=2.0, anchor=zeros)
    for same in (problem, problem.around_origin()):
        found = same.direction(VARIABLES, VARIABLES)
        np.testing.assert_array_equal(found["params"], 3 * 2.0 + 2.0 + 2 * 2.0)
        np.testing.assert_array_equal(found["batch_stats"]["mean"], 5.0)
    found = perturbed(zeros, VARIABLES, 0.1)
    np.testing.assert_allclose(found["params"], 0.1 / np.sqrt(3), rtol=1e-5)
    np.testing.assert_array_equal(found["batch_stats"]["mean"], 0.0)
