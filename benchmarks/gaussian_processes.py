"""Local steps of SLIM-KL beside the Cholesky factor of the same matrix, in one run."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from benchmarks.measure import Row, alternately
from dflax import gaussian_processes as gp

COMPONENTS = 500


def rows(quick: bool) -> list[Row]:
    """One closed-form step of all weights, for one agent with so many observations, float32."""
    sizes = (240,) if quick else (240, 1000)
    return [steps(size, mode, quick) for size in sizes for mode in ("even", "factored")]


def steps(size: int, mode: Any, quick: bool) -> Row:
    """A step of an agent, and the factor alone."""
    x = np.arange(float(size))
    y = np.sin(0.3 * x) + 0.1 * np.random.default_rng(0).normal(size=size)
    kernel = gp.gsmp(gp.spectral_grid(1, COMPONENTS), mode=mode)
    agents = gp.agents(x, y, dx.data.from_indices([np.arange(size)]))
    observed = jax.tree.map(lambda leaf: leaf[0], gp.observe(kernel, agents, 0.01))
    theta = gp.starting_weights(kernel, agents)

    @jax.jit
    def step(observed: gp.Observations, theta: Any) -> Any:
        at = functools.partial(gp.evidence, kernel, observed)
        return gp.mm(1)(at, theta, theta, jnp.float32(1.0))

    whole = jax.jit(kernel.covariance)(observed.cache, theta) + 0.01 * jnp.eye(size)
    factor = jax.jit(jnp.linalg.cholesky)
    ours, least = alternately(
        lambda: step(observed, theta), lambda: factor(whole), repeats=5 if quick else 30
    )
    name = f"a local step of SLIM-KL, {COMPONENTS} components, {size} observations, {mode}"
    return Row(name, ours, "its Cholesky factor", least)
