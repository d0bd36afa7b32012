"""Right calls of what keeps secrets."""

import numpy as np

import dflax as dx
from doors.things import AGGREGATOR, DATA, FEDERATION, LOSS, OPTIMIZER, PARAMS, PARTITION

PLAN = dx.privacy.Plan("client", 1.0, 2, population=4)
NOISE = dx.privacy.tree_noise(4)
SAMPLED = FEDERATION.replace(partition=dx.privacy.poisson_sampled(PARTITION, 0.5), batch_size=8)
TABLE = FEDERATION.replace(participation=dx.participation.from_table(np.arange(4).reshape(4, 1)))
MEAN = {"norm": 1.0, "noise_multiplier": 1.0, "expected": 2.0}
SPENT = {"plan": PLAN, "delta": 1e-3, "accountant": "rdp"}
WITHIN = {**SPENT, "epsilon": 1.0}
CANARIES = dx.privacy.with_canaries(DATA, PARTITION, 4)

CALLS = {
    "privacy.adaptive_private_mean": {
        "quantile": 0.5,
        "noise_multiplier": 1.0,
        "expected": 2.0,
        "count_deviation": 2.0,
        "start": 1.0,
        "rate": 0.2,
    },
    "privacy.banded_noise": {"steps": 2, "bands": 1, "separation": 1, "participations": 1},
    "privacy.budget": WITHIN,
    "privacy.buffered_noise": {
        "steps": 4,
        "separation": 4,
        "participations": 1,
        "buffers": 1,
    },
    "privacy.canary_scores": {
        "loss": LOSS,
        "start": PARAMS,
        "params": PARAMS,
        "canaries": CANARIES.examples,
    },
    "privacy.clients_plan": {
        "source": FEDERATION,
        "noise_multiplier": 1.0,
        "rounds": 2,
        "amplified": True,
    },
    "privacy.clipped_per_example": {
        "loss": LOSS,
        "norm": 1.0,
        "expected": 2.0,
        "groups": dx.privacy.layer,
        "at_once": 1,
    },
    "privacy.clipped_updates": {"norm": 1.0},
    "privacy.correlated_mean": {"noise": NOISE, **MEAN},
    "privacy.correlated_plan": {
        "source": TABLE,
        "noise": NOISE,
        "noise_multiplier": 1.0,
        "rounds": 2,
    },
    "privacy.epsilon": SPENT,
    "privacy.epsilon_after": {**SPENT, "rounds": np.array([1, 2])},
    "privacy.epsilon_lower_bound": {
        "scores": np.arange(4.0),
        "included": np.arange(4) > 1,
        "delta": 1e-3,
        "confidence": 0.9,
        "guesses": 2,
    },
    "privacy.examples_plan": {
        "federation": SAMPLED,
        "noise_multiplier": 1.0,
        "rounds": 2,
        "amplified": True,
    },
    "privacy.joint_noise": {"deviation": 1.0, "tolerated": 1},
    "privacy.layer": {"path": "['Dense_0']['kernel']"},
    "privacy.noise_for": WITHIN,
    "privacy.noisy": {"rule": AGGREGATOR, "deviation": 1.0},
    "privacy.noisy_gradient": {"loss": LOSS, "deviation": 1.0},
    "privacy.places": {"partition": PARTITION, "probability": 0.5, "deviations": 6.0},
    "privacy.poisson_sampled": {"partition": PARTITION, "probability": 0.5},
    "privacy.private_mean": MEAN,
    "privacy.rounds_within": WITHIN,
    "privacy.tree_noise": {"steps": 4},
    "privacy.with_canaries": {
        "data": DATA,
        "partition": PARTITION,
        "count": 4,
        "seed": 0,
        "inputs": np.asarray(DATA.inputs)[:4],
        "labels": np.asarray(DATA.labels)[:4],
        "own_clients": True,
    },
    "recipes.dp_fedavg": {
        "loss": LOSS,
        "optimizer": OPTIMIZER,
        **MEAN,
        "quantile": 0.5,
    },
    "recipes.dp_ftrl": {"loss": LOSS, "optimizer": OPTIMIZER, "noise": NOISE, **MEAN},
}
