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


def numbers(good):
    """What a study may find, in which everything holds, or nothing."""
    level = {"KSAS": 0.7, "plain KL": 0.65, "entropy": 0.69, "random": 0.69}
    if not good:
        level |= {"plain KL": 0.69, "entropy": 0.75, "random": 0.75}
    made = {}
    for how in (*kafal.SAMPLED, *kafal.UPDATED):
        value = level[how[0]] + (0.02 if good and how[1] == "FedAvg" else -0.02)
        value = level[how[0]] if how[1] == "KCFU" else value
        labels = np.tile(np.array([[10.0, 20.0, 30.0 if good else 29.0]]), (3, 1))
        made[how] = {
            "accuracy": np.full((3, 3), value),
            "labels": labels,
            "bought": np.full((3, 3), 10.0),
        }
    return made


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    claims = kafal.claims(numbers(good), np.full(3, 10))
    assert [claim.holds for claim in claims] == [good] * 5


@pytest.mark.slow
def test_samplers_of_one_update_begin_alike():
    """Nothing is bought before the first measurement."""
    given = kafal.problem(TINY, 1, MODEL, load)
    for update in ("KCFU", "FedAvg"):
        found = [
            kafal.run(TINY, given, (sampler, update), 1)["accuracy"][0]
            for sampler in ("KSAS", "random")
        ]
        np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-6)
    summary = kafal.on_digits(kafal.Config(**(vars(TINY) | {"seeds": 1, "update_seeds": 1})))
    assert len(summary.methods) == 7
    assert summary.claims[-1].holds


def test_the_claims_on_images_follow_from_the_numbers():
    accuracy = {
        how: {"accuracy": np.full((3, 4), 0.5 if how[0] == "random" else 0.4)}
        for how in kafal.FASHION_ROWS
    }
    accuracy["KSAS", "KCFU"]["accuracy"] = np.full((3, 4), 0.45)
    found = {claim.claim: claim.holds for claim in kafal.fashion_claims(accuracy)}
    assert list(found) == kafal.fashion_statements(kafal.Config())
    ahead = {title: ours != other for title, ours, other in kafal.FASHION_CLAIMS}
    assert len(ahead) == len(found)
    assert found["Fashion-MNIST, under KCFU, KSAS is ahead of plain KL"]
    assert not found["Fashion-MNIST, under KCFU, KSAS is ahead of random"]
