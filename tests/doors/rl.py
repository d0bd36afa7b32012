"""Right calls of reinforcement learning."""

import numpy as np
import optax

import dflax as dx
from doors.things import KEY, MIXER, N

RL = dx.rl
WORLD = RL.environment(
    lambda task, key: np.zeros(2, np.float32),
    lambda task, state, action, key: RL.Outcome(state, 1.0, False),
    lambda task, state: state,
)
BEGUN = RL.begin(WORLD, (), KEY, 2)


def networks(params, seen):
    return RL.Categorical(seen), seen[:, 0]


def acting(seen, key):
    return seen[:, 0], ()


def wind(task, state, key):
    return RL.Outcome(state, 0.0, False)


class Gym:
    """What gymnax's environments have."""

    default_params: tuple[()] = ()

    def reset_env(self, key, params):
        return np.zeros(2), np.zeros(2)

    def step_env(self, key, state, action, params):
        return state, state, 0.0, False, {}


class Brax:
    """What brax's environments have."""

    def reset(self, key):
        return None

    def step(self, state, action):
        return state


PLAYING = {"environment": WORLD, "task": (), "act": acting, "key": KEY}
LEARNER = RL.ppo(WORLD, networks, optax.sgd(0.1), environments=2, steps=4)
REWARDS = np.ones((3, 2), np.float32)

CALLS = {
    "rl.ActorCritic": {"actions": 2},
    "rl.Tower": {"features": (4,), "outputs": 2},
    "rl.alone": {"learner": LEARNER, "agents": N},
    "rl.begin": {"environment": WORLD, "task": (), "key": KEY, "environments": 2},
    "rl.environment": {"reset": WORLD.reset, "act": WORLD.act, "observe": WORLD.observe},
    "rl.epochs_of": {
        **{"loss": lambda params, batch, key: (0.0 * params.sum(), {})},
        **{"optimizer": optax.sgd(0.1, momentum=0.9), "params": np.ones(2, np.float32)},
        **{
            "memory": optax.sgd(0.1, momentum=0.9).init(np.ones(2, np.float32)),
            "samples": np.ones((4, 2)),
            "key": KEY,
        },
        **{"epochs": 2, "minibatches": 2},
    },
    "rl.evaluate": {**PLAYING, "episodes": 2, "horizon": 3},
    "rl.federated": {"learner": LEARNER, "agents": N},
    "rl.from_brax": {"environment": Brax()},
    "rl.from_gymnax": {"environment": Gym()},
    "rl.gossiping": {"learner": LEARNER, "agents": N, "mixer": MIXER},
    "rl.ppo": {"environment": WORLD, "networks": networks, "optimizer": optax.sgd(0.1)},
    "rl.rollout": {**PLAYING, "running": BEGUN, "steps": 3},
    "rl.taking": {"networks": networks, "params": ()},
    "rl.time_limit": {"environment": WORLD, "horizon": 3},
    "rl.two_stage": {
        **{"reset": WORLD.reset, "post": lambda task, state, action: (state, 0.0)},
        **{"noise": wind, "observe": WORLD.observe},
    },
    "rl.clipped": {"log_ratio": REWARDS, "advantages": REWARDS, "clip": 0.2},
    "rl.discounted_returns": {"rewards": REWARDS, "ends": REWARDS, "discount": 0.9},
    "rl.gae": {
        **{"rewards": REWARDS, "values": REWARDS, "ends": REWARDS},
        **{"beyond": 0.0, "discount": 0.9, "decay": 0.9},
    },
    "rl.leave_one_out": {"rewards": REWARDS},
    "rl.standardised": {"advantages": REWARDS},
}
