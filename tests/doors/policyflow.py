"""Right calls of flow policies, and of the environments with goals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dflax import generative, rl
from dflax.rl import flow

KEY = jax.random.key(0)
NETWORKS = flow.FlowActorCritic(2, (2,))
POLICY = flow.flow_policy(NETWORKS)
PARAMS = NETWORKS.init(KEY, jnp.zeros((1, 2)))["params"]
WORLD = rl.time_limit(rl.goals.multi_goal(), 3)
LEARNER = {"environment": WORLD, "policy": POLICY, "optimizer": optax.sgd(0.1)}
ROWS, TIMES = np.full((4, 2), 0.1, np.float32), np.full(4, 0.5, np.float32)
SAMPLE = rl.Sample(ROWS, ROWS, flow.Carried(ROWS, ROWS, TIMES), TIMES, TIMES, TIMES)
SIZES = rl.Sizes(environments=4, steps=4, epochs=1, minibatches=1)
SPREAD = np.zeros(2, np.float32)


def act(params, seen, key):
    """As a method of the PPO family acts."""
    return seen, seen


def value(params, seen):
    """As it judges states."""
    return seen[:, 0]


def loss(params, reference, samples, key):
    """As it learns."""
    return 0.0, {}


CALLS = {
    "generative.on_grid": {"steps": 3},
    "rl.flow.FlowActorCritic": {"actions": 2},
    "rl.flow.brownian_residual": {
        **{"path": generative.rectified(), "velocity": ROWS},
        **{"reference": ROWS, "x": ROWS, "time": TIMES},
    },
    "rl.flow.chain_log_probs": {
        **{"policy": POLICY, "params": PARAMS, "observation": ROWS, "deviation": 0.1},
        "states": np.zeros((4, 3, 2), np.float32),
    },
    "rl.flow.clip_ranges": {"flow_steps": 3},
    "rl.flow.dppo": LEARNER,
    "rl.flow.flow_policy": {"networks": NETWORKS},
    "rl.flow.flowing": {"policy": POLICY, "params": PARAMS, "steps": 2},
    "rl.flow.fpo": LEARNER,
    "rl.flow.interpolation_error": {
        **{"policy": POLICY, "params": PARAMS, "reference": PARAMS, "batch": SAMPLE, "key": KEY},
    },
    "rl.flow.log_shift_ratio": {
        **{"noise": ROWS, "shift": ROWS, "log_deviation": SPREAD, "old_log_deviation": SPREAD},
    },
    "rl.flow.matching_losses": {
        **{"policy": POLICY, "params": PARAMS, "observation": ROWS, "action": ROWS},
        **{"noise": np.zeros((4, 3, 2), np.float32), "time": np.zeros((4, 3), np.float32)},
    },
    "rl.flow.policyflow": LEARNER,
    "rl.flow.ratio_error": {
        **{"noise": ROWS, "interpolated": ROWS, "exact": ROWS},
        **{"log_deviation": SPREAD, "old_log_deviation": SPREAD},
    },
    "rl.goals.coverage": {"ends": ROWS, "reached": TIMES, "places": ROWS},
    "rl.goals.maze_distances": {
        "walls": np.zeros((2, 2), bool),
        "goals": np.eye(2, dtype=bool),
    },
    "rl.goals.multi_goal": {},
    "rl.goals.point_maze": {},
    "rl.on_policy": {
        **{"environment": WORLD, "optimizer": optax.sgd(0.1), "sizes": SIZES, "act": act},
        **{"value": value, "loss": loss, "discount": 0.9, "decay": 0.9},
    },
}
