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
# Of a convex approximation, between two traces of the inverse.
INNER = 10


def rows(quick: bool) -> list[Row]:
    """A closed-form step of all weights, and of an approximation, for one agent, float32."""
    sizes = (240,) if quick else (240, 1000)
    return [
        row
        for size in sizes
        for mode in ("even", "lagged", "factored")
        for row in steps(size, mode, quick)
    ]


def steps(size: int, mode: Any, quick: bool) -> list[Row]:
    """A step of an agent with so many observations, and the factor alone.

    Inputs of "even" are one apart, of the others up to 0.2 away from that. "MM" is a step in which
    both gradients are new. "SCA" holds the gradient of log det C for 10 steps, of which one is timed.
    """
    rng = np.random.default_rng(0)
    x = 1.5 * np.arange(float(size))
    x = x if mode == "even" else x + rng.uniform(-0.2, 0.2, size)
    y = np.sin(0.3 * x) + 0.1 * rng.normal(size=size)
    reach = 1.5 * size if mode == "lagged" else None
    kernel = gp.gsmp(gp.spectral_grid(1, COMPONENTS), mode=mode, reach=reach)
    agents = gp.agents(x, y, dx.data.from_indices([np.arange(size)]))
    observed = jax.tree.map(lambda leaf: leaf[0], gp.observe(kernel, agents, 0.01))
    theta = gp.starting_weights(kernel, agents)

    def solved(solver: gp.Solver) -> Any:
        @jax.jit
        def step(observed: gp.Observations, theta: Any) -> Any:
            at = functools.partial(gp.evidence, kernel, observed)
            return solver(at, theta, theta, jnp.float32(1.0))

        return lambda: step(observed, theta)

    whole = jax.jit(kernel.covariance)(observed.cache, theta) + 0.01 * jnp.eye(size)
    factor = jax.jit(jnp.linalg.cholesky)
    one, several, least = alternately(
        solved(gp.mm(1)),
        solved(gp.dsca(1, 1, INNER)),
        lambda: factor(whole),
        repeats=5 if quick else 30,
    )
    name = f"a local step of SLIM-KL, {COMPONENTS} components, {size} observations, {mode}"
    # An approximation has a factor for its traces, and one for each step.
    return [
        Row(f"{name}, MM", one, "its Cholesky factor", least),
        Row(f"{name}, SCA", several / (INNER + 1), "its Cholesky factor", least),
    ]
