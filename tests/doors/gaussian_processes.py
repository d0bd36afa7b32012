"""Right calls of Gaussian processes."""

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import gaussian_processes as gp

X, Y = np.arange(8.0, dtype=np.float32), np.sin(np.arange(8.0, dtype=np.float32))
PARTITION = dx.data.from_indices([np.arange(4), np.arange(4, 8)])
KERNEL = gp.gsmp(gp.spectral_grid(1, 3))
AGENTS = gp.agents(X, Y, PARTITION)
OBSERVED = gp.observe(KERNEL, AGENTS, 0.1)
ONE = jax.tree.map(lambda leaf: leaf[0], OBSERVED)
THETA = np.ones(3, np.float32)
EXPONENTIAL = gp.SquaredExponential(jnp.zeros(()), jnp.zeros(1))
MIXTURE = gp.SpectralMixture(jnp.zeros(2), jnp.zeros((2, 1)), jnp.zeros((2, 1)))
DATA = {"inputs": X[:, None], "targets": Y, "noise": 0.1}
FREE = {"kernel": gp.squared_exponential, **DATA}

CALLS = {
    "gaussian_processes.agents": {"inputs": X, "targets": Y, "partition": PARTITION},
    "gaussian_processes.dsca": {},
    "gaussian_processes.evidence": {"kernel": KERNEL, "observed": ONE, "theta": THETA},
    "gaussian_processes.fused": {
        "prediction": gp.predict(KERNEL, THETA, AGENTS, 0.1, X[:2]),
    },
    "gaussian_processes.gsmp": {"grid": gp.spectral_grid(1, 3)},
    "gaussian_processes.joint_objective": {"kernel": KERNEL, "observed": OBSERVED},
    "gaussian_processes.local_weights": {"kernel": KERNEL},
    "gaussian_processes.maximum_likelihood": {
        **FREE,
        "starts": jax.tree.map(lambda leaf: leaf[None], EXPONENTIAL),
        "steps": 1,
    },
    "gaussian_processes.mm": {},
    "gaussian_processes.noise_variance": {"targets": Y},
    "gaussian_processes.objective": {"kernel": KERNEL, "observed": ONE, "theta": THETA},
    "gaussian_processes.observe": {"kernel": KERNEL, "agents": AGENTS, "noise": 0.1},
    "gaussian_processes.observing": {"observed": OBSERVED},
    "gaussian_processes.positive_root": {"p": 1.0, "b": 1.0, "rho": 1.0},
    "gaussian_processes.posterior": {**FREE, "params": EXPONENTIAL, "points": X[:2, None]},
    "gaussian_processes.predict": {
        "kernel": KERNEL,
        "theta": THETA,
        "agents": AGENTS,
        "noise": 0.1,
        "points": X[:2],
    },
    "gaussian_processes.slim_kl": {"kernel": KERNEL, "clients": 2},
    "gaussian_processes.spectral_grid": {},
    "gaussian_processes.spectral_mixture": {
        "params": MIXTURE,
        "left": X[:, None],
        "right": X[:, None],
    },
    "gaussian_processes.squared_exponential": {
        "params": EXPONENTIAL,
        "left": X[:, None],
        "right": X[:, None],
    },
    "gaussian_processes.starting_weights": {"kernel": KERNEL, "agents": AGENTS},
}
