"""Right calls of samplers as policies."""

import numpy as np
import optax

import dflax as dx

GEN = dx.generative
STEP = GEN.ddim(GEN.cosine(), eta=1.0, least=0.1)


def network(params, noised):
    """A prediction like x."""
    return noised.x


def reward(samples, prompts):
    """A number for each sample."""
    return samples[:, 0]


POLICY = dx.rl.denoising_policy(network, STEP, GEN.grid(4), (2,))
# The options that `reinforce` and its kin hand on.
OPTIONS = {
    **{"bound": 2.0, "scaled": False, "trained_steps": 2, "steps_at_once": 1},
    **{"clients": 2, "aggregator": None, "channel": None, "at_once": None},
}
GIVEN = {
    **{"policy": POLICY, "reward": reward, "optimizer": optax.sgd(0.1)},
    **{"prompts": 2, "samples": 2},
    **OPTIONS,
}
CLIPPED = {"clip": 0.2, "minibatches": 2, "epochs": 1, "pessimistic": True}

CALLS = {
    "rl.baselines.batch_mean": {},
    "rl.baselines.batch_statistics": {},
    "rl.baselines.nothing": {},
    "rl.baselines.others": {},
    "rl.baselines.prompt_statistics": {"size": 4, "least": 2},
    "rl.black_box": {"function": reward},
    "rl.ddpo": {**GIVEN, **CLIPPED, "statistics": dx.rl.baselines.batch_statistics()},
    "rl.denoising_policy": {
        **{"model": network, "step": STEP, "times": GEN.grid(4), "shape": (2,)},
        **{"guidance": 2.0, "null": np.zeros(2)},
    },
    "rl.fine_tuning": {**GIVEN, **CLIPPED, "baseline": dx.rl.baselines.others()},
    "rl.loop": {**GIVEN, **CLIPPED},
    "rl.reinforce": GIVEN,
    "rl.rloo": GIVEN,
}
