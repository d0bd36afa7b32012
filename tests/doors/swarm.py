"""Right calls of swarms that rank each other's answers."""

import numpy as np

import dflax as dx
from doors.things import KEY, score

inference = dx.inference
NODES = 4
WINS = np.ones((NODES, NODES))
PAIRS = inference.all_pairs(NODES)

CALLS = {
    "inference.Questions": {"nodes": NODES, "ask": inference.latent_questions()},
    "inference.all_pairs": {"nodes": NODES},
    "inference.bradley_terry": {"wins": WINS},
    "inference.bradley_terry_likelihood": {"log_strength": np.zeros(NODES), "wins": WINS},
    "inference.by_elo": {},
    "inference.by_majority": {},
    "inference.by_strength": {},
    "inference.by_win_rate": {},
    "inference.capability_test": {},
    "inference.classifier_swarm": {"apply": score, "nodes": NODES},
    "inference.clustered": {"rule": inference.by_majority()},
    "inference.dual_track": {},
    "inference.entry_cost": {"questions": 20, "threshold": 0.6, "capability": 0.5},
    "inference.example_questions": {
        "inputs": np.ones((2, 3)),
        "labels": np.array([0, 1]),
        "classes": 2,
    },
    "inference.fortytwo": {"swarm": inference.latent_swarm(NODES)},
    "inference.latent_questions": {},
    "inference.latent_swarm": {"nodes": NODES},
    "inference.pass_probability": {"questions": 20, "threshold": 0.6, "capability": 0.5},
    "inference.round_rewards": {},
    "inference.rounds_to_reputation": {"signal": 0.8, "target": 0.5},
    "inference.sampled_pairs": {"key": KEY, "nodes": NODES, "count": 2},
    "inference.sybil_profit": {"identities": 2.0, "reward": 2.0, "entry": 20.0},
    "inference.weighted_wins": {
        "pairs": PAIRS,
        "verdicts": np.full(PAIRS.shape[:2], 0.5),
        "weights": np.ones(NODES),
    },
}
