"""The study of swarms: its claims follow from the numbers, and can fail."""

import numpy as np
import pytest

from experiments.studies.inference import swarm as study
from experiments.tools.report import Report


def judged(claims, *arguments):
    report = Report()
    claims(report, *arguments)
    return [claim.holds for claim in report.claims]


@pytest.mark.parametrize("good", [True, False])
def test_claims_of_the_table(good):
    means = np.repeat(np.array(list(study.TABLE.values()))[..., None], 12, -1)
    found = dict(zip(("majority", "unweighted", "correct"), np.moveaxis(means, 1, 0), strict=True))
    # Seeds differ, or nothing is within its error.
    found = {name: values + 0.01 * (-1) ** np.arange(12) for name, values in found.items()}
    found["honest"], found["liar"] = np.full((8, 12), 0.65), np.full((8, 12), 0.4)
    found["honest"][-1], found["liar"][-1] = 0.4, 0.68
    assert judged(study._claims_of_table, found) == [True] * 8
    if not good:
        # One seed is enough.
        found = {name: values.copy() for name, values in found.items()}
        found["correct"][[0, 1], 3] = found["majority"][[0, 1], 3]
        found["unweighted"][6, 3], found["honest"][6, 3] = 0.76, 0.41
        found["correct"][7, 3] = 0.2
        found["correct"][3] = 0.4
        found["correct"][2] -= 0.1
        assert judged(study._claims_of_table, found) == [False] * 8


def test_claims_of_audits():
    plain = np.repeat(np.array([0.32, 0.32, 0.66, 0.66, 0.05])[:, None, None], 4, 1)
    ranked = np.array([*study.AUDITED, (0.01, 0.02, 0.5, 0.8)])[..., None]
    found = {"correct": ranked, "unweighted": plain}
    found |= {"honest": np.full((5, 4, 1), 0.6), "liar": np.full((5, 4, 1), 0.4)}
    assert judged(study._claims_of_audits, found) == [True] * 6
    found["correct"] = ranked[:, ::-1]
    # Audits that cost: of 0.2 the rates in the middle are met still.
    assert judged(study._claims_of_audits, found)[1:2] == [False]
    assert judged(study._claims_of_audits, found)[3:] == [False] * 3


def test_how_many_liars_are_borne():
    curve = np.array([0.9, 0.85, 0.81, 0.5, 0.9])[:, None] + np.array([0.0, 0.0])
    np.testing.assert_array_equal(study.borne(curve), [2, 2])
    liars = np.arange(9)[:, None]
    falls = [np.where(liars <= most, 0.9, 0.1) * np.ones(5) for most in (2, 3, 4, 5)]
    weighted, majority = np.array(falls), np.where(liars <= 1, 0.5, 0.1) * np.ones(5)
    assert judged(study._claims_of_tolerance, weighted, majority) == [True] * 3
    assert judged(study._claims_of_tolerance, weighted[::-1], weighted[-1]) == [False] * 3


def test_the_claim_of_earnings():
    ahead = np.where(np.arange(9) < 6, 1.0, -1.0)[:, None] * np.ones((3, 9, 2))
    ahead[-1] = 0.5
    assert judged(study._claim_of_earnings, ahead) == [True]
    for place in ((0, 5, 1), (0, 7, 0), (2, 7, 1)):
        other = ahead.copy()
        other[place] *= -1
        assert judged(study._claim_of_earnings, other) == [False]


def test_the_claim_of_sybils():
    """Entering costs 80 computations: an identity pays from 0.8 a query beyond its cost."""
    net = np.where(np.arange(9) < 6, 0.7, 0.9)[:, None] * np.ones((9, 3))
    assert judged(study._claim_of_sybils, net, net - 0.2) == [True]
    assert judged(study._claim_of_sybils, net, net) == [False]
    assert judged(study._claim_of_sybils, net + 0.2, net - 0.2) == [False]
    assert judged(study._claim_of_sybils, net - 0.2, net - 0.2) == [False]


def test_the_claim_of_entry():
    price = np.array([80.0, 30.0])
    assert judged(study._claim_of_entry, price[:, None] * [1.1, 0.95], price) == [True]
    assert judged(study._claim_of_entry, price[:, None] * [1.2, 0.95], price) == [False]


@pytest.mark.parametrize("good", [True, False])
def test_claims_of_digits(good):
    shape = (6, 4)
    one = {name: np.full(shape, value) for name, value in {"correct": 0.9, "best": 0.8}.items()}
    one |= {"majority": np.full(shape, 0.9), "unweighted": np.full(shape, 0.85)}
    one["majority"][3:] = 0.5
    one["correct"][5] = 0.1
    audited = {"correct": np.full(shape, 0.98)}
    lost = {"a random node": np.full((4, 3), 0.2), "ranking by reputation": np.full((4, 3), 0.1)}
    lost["majority of answers"] = np.full((4, 3), 0.11 if good else 0.15)
    if not good:
        one["majority"][0, 1], one["majority"][3:, 2] = 0.7, 0.9
        audited["correct"][5] = 0.9
        lost["ranking by reputation"][2, 1] = 0.3
    assert judged(study._claims_of_digits, one, audited) == [good] * 4
    assert judged(study._claims_of_injection, lost) == [good] * 2
