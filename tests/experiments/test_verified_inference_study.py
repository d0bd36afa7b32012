"""The study of verified inference: its claims follow from the numbers, and can fail."""

import numpy as np
import pytest
from scipy.stats import binom

from experiments.studies.private import verified_inference as study
from experiments.tools.report import Report

TAILS = np.array(
    [
        [binom.sf(int(np.ceil(2 * k / 3 - 1e-9)) - 1, k, f) for f in study.SHARES]
        for k in study.COMMITTEES
    ]
)


def judged(claims, *arguments):
    report = Report()
    claims(report, *arguments)
    return [claim.holds for claim in report.claims]


def test_claims_of_committees():
    wrong = np.repeat(TAILS[None], 3, 0)
    assert judged(study._claims_of_committees, wrong, wrong + 0.01, TAILS, 4000) == [True] * 4
    # A liar among none, larger committees that are worse, and growing ones that are better.
    other = wrong[:, ::-1] + np.array([0.1, 0, 0, 0, 0])
    assert judged(study._claims_of_committees, other, other - 0.01, TAILS, 4000) == [False] * 4


@pytest.mark.parametrize("good", [True, False])
def test_claims_of_audits(good):
    predicted = np.array([100.0, 50.0])
    delay = np.tile(predicted[:, None] * np.array([0.8, 1.2]), (3, 1, 1))
    honest = np.full((3, 2, 5), -1)
    if not good:
        delay[0, 0] = np.nan
        delay[:, 1] *= 2
        honest[2, 1, 0] = 7
    assert judged(study._claims_of_delay, delay, honest, predicted) == [good] * 3
    shares = np.array(study.AUDITED)
    line = study.SAVED - shares * (1 + study.FINE)
    gain = np.repeat(line[None], 3, 0) + (0.0 if good else 0.12)
    crossing = np.array([study._zero(shares, row) for row in gain])
    np.testing.assert_allclose(crossing, 0.2 if good else 0.26)
    assert judged(study._claims_of_deterrence, gain, line, crossing) == [good] * 2


def test_the_claim_of_executions():
    wanted = np.tile(1 + 6 * np.array(study.AUDITS), (3, 1))
    assert judged(study._claim_of_executions, wanted, 2000) == [True]
    assert judged(study._claim_of_executions, wanted + 0.5, 2000) == [False]


@pytest.mark.parametrize("good", [True, False])
def test_claims_of_leakage(good):
    found = {}
    for cut, cells in study.PROTOTYPE.items():
        error, accuracy = np.array(cells).T
        # The prototype's own rounded table has equal neighbours at no noise.
        rows = {"ridge": error, "network": error - 0.01, "accuracy": accuracy}
        found[cut] = {name: np.repeat(row[None], 3, 0) for name, row in rows.items()}
    if not good:
        found[3]["ridge"][1] = 0.1
        found[3]["ridge"][:, 3] -= 0.2
    assert judged(study._claims_of_leakage, found) == [good] * 4


def test_the_gain_is_that_of_an_execution():
    balance = np.array([[[0.9] * 4 + [5.0] * 16]])
    done = np.full((1, 1, 20), 10)
    assert study._gain({"balance": balance, "done": done}) == pytest.approx(0.09 - 0.5)


@pytest.mark.slow
def test_an_altered_output_changes_nothing_else():
    from dflax import verified_inference as vi

    layers = [(np.eye(3), np.zeros(3)), (np.eye(3), np.zeros(3))]
    inputs = np.array([[0.1, 0.5, 1.0]])
    network = vi.quantise(layers, inputs)
    proof = vi.prove_inference(network, inputs)
    altered = study._altered_output(proof, 1)
    before, after = (vi.claim_of(network, one) for one in (proof, altered))
    assert np.array_equal(before.inputs, after.inputs)
    assert np.flatnonzero(before.outputs != after.outputs).tolist() == [0]


def test_parts_have_tables_of_their_own():
    import inspect
    import re

    titles = [
        set(re.findall(r'"(costs of [^"]+)"', inspect.getsource(part.run)))
        for part in study.STUDY.parts[3:]
    ]
    assert [len(own) for own in titles] == [1, 1, 1]
    assert len(set.union(*titles)) == 3
