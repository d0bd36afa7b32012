"""Right calls of diffusion and flow models."""

import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from doors.things import KEY, PARAMS

G = dx.generative
PATH, TIMES = G.rectified(), G.grid(2, last=0.1)
X = np.ones((2, 3), np.float32)
POINTS = G.mixture(np.arange(12.0).reshape(4, 3))
NOISED = G.Noised(jnp.asarray(X), jnp.ones(2))
STEP = G.ddim(PATH, eta=1.0)


def network(params, noised):
    """A prediction like x."""
    return noised.x


def field(noised, key):
    """A prediction like x."""
    return noised.x


SAMPLED = {"field": field, "step": STEP, "times": TIMES, "key": KEY}

CALLS = {
    "generative.average_of": {
        "optimizer_state": G.averaging(optax.sgd(0.1)).init(jnp.ones(3)),
    },
    "generative.averaging": {"optimizer": optax.sgd(0.1)},
    "generative.cosine": {},
    "generative.ddim": {"path": PATH, "clip": None},
    "generative.denoising": {"model": network, "path": PATH},
    "generative.discrete": {"betas": np.full(3, 0.1)},
    "generative.euler": {"path": PATH},
    "generative.exact": {"mixture": POINTS, "path": PATH},
    "generative.field": {"model": network, "params": PARAMS},
    "generative.grid": {"steps": 2},
    "generative.guided": {"field": field, "scale": 2.0, "null": 3},
    "generative.heun": {"path": PATH},
    "generative.log_probs": {**SAMPLED, "states": np.ones((3, 2, 3), np.float32)},
    "generative.log_responsibilities": {
        "mixture": POINTS,
        "labels": np.array([0, 1, 0, 1]),
        "groups": 2,
        "path": PATH,
        "noised": NOISED,
    },
    "generative.logit_normal": {},
    "generative.mixture": {"means": np.arange(12.0).reshape(4, 3)},
    "generative.noised": {"path": PATH, "data": X, "noise": X, "time": np.ones(2)},
    "generative.rectified": {},
    "generative.sample": {**SAMPLED, "start": X},
    "generative.targets.data": {"path": PATH, "time": jnp.ones(2)},
    "generative.targets.noise": {"path": PATH, "time": jnp.ones(2)},
    "generative.targets.solved": {
        **{"target": G.targets.v, "path": PATH, "prediction": X, "x": X, "time": jnp.ones(2)},
    },
    "generative.targets.v": {"path": PATH, "time": jnp.ones(2)},
    "generative.targets.value": {
        **{"target": G.targets.v, "path": PATH, "data": X, "noise": X, "time": jnp.ones(2)},
    },
    "generative.targets.velocity": {"path": PATH, "time": jnp.ones(2)},
    "generative.targets.velocity_of": {
        **{"target": G.targets.v, "path": PATH, "prediction": X, "x": X, "time": jnp.ones(2)},
    },
    "generative.trajectory": {**SAMPLED, "start": X},
    "generative.uniform": {},
    "generative.variance_preserving": {},
    "models.AdaptiveBlock": {"heads": 2},
    "models.DiT": {"patch": 2},
    "models.ResidualBlock": {"channels": 8},
    "models.TimeMLP": {"width": 4},
    "models.UNet": {},
    "models.time_features": {"time": np.ones(2), "features": 4},
}
