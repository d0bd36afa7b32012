"""Small quadratic objectives and ADMM in NumPy's float64, for the tests of the ADMM family."""

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx

KEY = jax.random.key(0)
N, D = 10, 6
TASK = dx.data.weighted_least_squares(
    KEY, N, D, (3, 5), noise=np.random.default_rng(3).uniform(0.5, 2.0, N)
)
ROWS = [np.asarray(TASK.data.inputs, np.float64)[rows] for rows in TASK.partition.as_lists()]
LABELS = [np.asarray(TASK.data.labels, np.float64)[rows] for rows in TASK.partition.as_lists()]
G = np.stack([A.T @ A for A in ROWS])
H = np.stack([A.T @ b for A, b in zip(ROWS, LABELS, strict=True)])


def objectives(dtype=np.float32, scale=1.0):
    return dx.local.quadratic_objectives(TASK.data, TASK.partition, scale=scale, dtype=dtype)


def federation(rule=None, scale=1.0):
    dtype = np.float64 if jax.config.jax_enable_x64 else np.float32
    return dx.local.quadratic_federation(objectives(dtype, scale), participation=rule)


def inverses(rho):
    return np.linalg.inv(G + rho * np.eye(D))


def textbook_admm(rho, rounds, z):
    """Models and consensus after every round, everyone taking part, from duals of 0 around z."""
    B, phi, models, means = inverses(rho), np.zeros((N, D)), [], []
    for _ in range(rounds):
        x = np.einsum("kij,kj->ki", B, H - phi + rho * z)
        z = (x + phi / rho).mean(0)
        phi = phi + rho * (x - z)
        models.append(x)
        means.append(z)
    return np.stack(models), np.stack(means)


def trajectory(algorithm, state, source, rounds, key=KEY):
    """States after every round, stacked."""

    @jax.jit
    def run(state, source):
        def one(state, index):
            state, _ = algorithm.step(state, source.draw(key, index))
            return state, state

        return jax.lax.scan(one, state, jnp.arange(rounds, dtype=jnp.int32))[1]

    return run(state, source)
