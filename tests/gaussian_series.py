"""A short series of two waves, its agents of unequal size, and their likelihood in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import gaussian_processes as gp

KEY = jax.random.key(0)
NOISE, COMPONENTS = 0.05, 12
SIZES = (9, 14, 12)


def series(seed=0, length=35):
    rng = np.random.default_rng(seed)
    x = np.arange(float(length))
    y = np.sin(2 * np.pi * 0.09 * x) + 0.5 * np.cos(2 * np.pi * 0.27 * x)
    return x, y + 0.2 * rng.normal(size=length)


X, Y = series()
ROWS = np.split(np.arange(len(X)), np.cumsum(SIZES)[:-1])
PARTITION = dx.data.from_indices(ROWS)
THETA = np.random.default_rng(1).uniform(0, 0.2, COMPONENTS)


def task(mode="even", rows=ROWS, noise=NOISE, **options):
    """The kernel, the agents and what they have observed, in the precision at hand."""
    reach = 40.0 if mode == "lagged" else None
    kernel = gp.gsmp(gp.spectral_grid(1, COMPONENTS, **options), mode=mode, reach=reach)
    agents = gp.agents(X, Y, dx.data.from_indices(rows))
    return kernel, agents, gp.observe(kernel, agents, noise)


def components(means, deviations, left, right):
    """All k_a in float64 NumPy, `[A, m, n]`."""
    apart = left[:, None] - right[None]
    found = np.ones((len(means), len(left), len(right)))
    for p in range(means.shape[1]):
        t = apart[None, ..., p]
        found *= np.exp(-2 * np.pi**2 * t**2 * deviations[:, p, None, None] ** 2)
        found *= np.cos(2 * np.pi * t * means[:, p, None, None])
    return found


def reference(theta, rows, noise=NOISE, deviation=1e-3, highest=0.5):
    """The value, g and q of one agent."""
    means = np.linspace(0, highest, COMPONENTS)[:, None]
    x, y = X[rows, None], Y[rows]
    K = components(means, np.full_like(means, deviation), x, x)
    inverse = np.linalg.inv(np.tensordot(theta, K, 1) + noise * np.eye(len(y)))
    v = inverse @ y
    value = y @ v - np.linalg.slogdet(inverse)[1]
    return value, np.einsum("aij,ij->a", K, inverse), np.einsum("aij,i,j->a", K, v, v)


def joint(theta, rows=ROWS):
    """The objective of all agents and its gradient."""
    found = [reference(theta, own) for own in rows]
    return sum(f[0] for f in found), sum(f[1] - f[2] for f in found)


def of_agent(observed, number):
    return jax.tree.map(lambda leaf: leaf[number], observed)


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def jitted(function, *arguments):
    """In float64, compiled, as NumPy arrays."""
    with jax.enable_x64(True):
        return as_numpy(jax.jit(function)(*jax.tree.map(jnp.asarray, arguments)))
