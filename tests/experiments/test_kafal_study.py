"""The study of KAFAL: its lanes are its seeds, and its claims can fail."""

import jax
import numpy as np
import pytest

import dflax as dx
from experiments.studies.active import kafal

TINY = kafal.Config(active_rounds=2, rounds=2, local_steps=2, batch_size=4, seeds=2, seed=3)
MODEL = dx.models.MLP((8,), classes=10)


def load(seed):
    return dx.data.digits(test_fraction=400 / 1797, seed=seed)


@pytest.mark.slow
def test_a_lane_is_its_seed_alone():
    both = kafal.problem(TINY, 2, MODEL, load)
    found = kafal.run(TINY, both, ("KSAS", "KCFU"), 2)
    budgets = np.asarray(both.lanes.budgets)
    np.testing.assert_array_equal(found["labels"][:, 0], budgets.sum(1))
    np.testing.assert_array_equal(found["bought"], np.tile(budgets.sum(1)[:, None], 2))
    assert (found["score_of_bought"] > found["score_of_rest"]).all()
    own = both.sources.source(jax.tree.map(lambda leaf: leaf[1], both.lanes.own))
    np.testing.assert_array_equal(own.partition.labelled.sum(1), budgets[1])
    sizes = np.asarray(own.partition.valid).sum(1)
    np.testing.assert_array_equal(np.ceil(0.05 * sizes), budgets[1])
    assert sizes.min() >= kafal.MIN_SIZE
    assert sizes.sum() == 1397
    later = kafal.Config(**(vars(TINY) | {"seed": 4, "seeds": 1}))
    alone = kafal.run(later, kafal.problem(later, 1, MODEL, load), ("KSAS", "KCFU"), 1)
    np.testing.assert_allclose(alone["labels"][0], found["labels"][1])
    # Other pools' padding changes neither who is drawn nor what is bought.
    np.testing.assert_allclose(alone["accuracy"][0], found["accuracy"][1], atol=0.01)


@pytest.mark.slow
def test_every_sampler_and_update_runs():
    given = kafal.problem(TINY, 1, MODEL, load)
    found = {how: kafal.run(TINY, given, how, 1) for how in (*kafal.SAMPLED, *kafal.UPDATED)}
    first = {how[1]: [] for how in found}
    for how, one in found.items():
        first[how[1]].append(one["accuracy"][0, 0])
    # Nothing is bought before the first measurement: samplers of one update begin alike.
    assert all(np.ptp(values) < 1e-6 for values in first.values())
    report = kafal.claims(found, np.asarray(given.lanes.budgets.sum(1)))
    assert report[-1].holds
