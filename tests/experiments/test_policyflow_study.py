"""What PolicyFlow's study concludes of made-up runs, and the weight that fades."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.rl import policyflow
from experiments.tasks.goal_policies import fading
from experiments.tools.report import Report


def found(entropy, reached, returned):
    shares = np.full((3, 6), 1 / 6)
    shares = np.eye(6)[[0, 0, 0]] if entropy < 0.4 else shares
    own = {"entropy": entropy, "reached": reached, "return": returned}
    return {key: np.full(3, value) for key, value in own.items()} | {"shares": shares}


RUNS = {
    policyflow.PPO: (0.0, 1.0, 8.9),
    policyflow.NONE: (0.2, 1.0, 8.9),
    policyflow.SOME: (0.8, 1.0, 8.8),
    policyflow.MORE: (0.97, 0.99, 8.1),
    policyflow.FADING: (0.7, 1.0, 8.8),
}
WORSE = {
    policyflow.PPO: (0.5, 1.0, 8.9),
    policyflow.NONE: (0.2, 0.9, 8.9),
    policyflow.SOME: (0.5, 1.0, 8.8),
    policyflow.MORE: (0.97, 0.9, 8.1),
    policyflow.FADING: (0.7, 1.0, 8.0),
}


def concluded(runs):
    report = Report()
    policyflow._claims(report, {name: found(*run) for name, run in runs.items()})
    return [claim.holds for claim in report.claims]


def test_runs_as_they_came_out_bear_out_all_claims():
    assert concluded(RUNS) == [True] * 5


@pytest.mark.parametrize("place", range(5))
def test_each_claim_rests_on_its_own_run(place):
    name = list(RUNS)[place]
    holds = concluded({**RUNS, name: WORSE[name]})
    assert holds == [number != place for number in range(5)]


def test_a_fading_weight_stands_falls_and_is_gone():
    weight = fading(0.2, 100)
    rounds = jnp.array([0, 40, 55, 70, 99])
    np.testing.assert_allclose(weight(rounds), [0.2, 0.2, 0.1, 0.0, 0.0], atol=1e-6)
