"""Runs of SLIM-KL over several penalties and resolutions, and what their weights predict."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import dflax as dx
from dflax import gaussian_processes as gp

KEY = jax.random.key(7)
# Weights above it are counted.
ACTIVE = 1e-4


def trainer(kernel: gp.MultipleKernel, agents: int, rounds: int, **options: Any) -> Any:
    """A compiled run for several first penalties and resolutions side by side.

    `(penalties [R], resolutions [R], observed, source, theta) -> (weights [R, A], curves)` with the
    objective of all agents, the residuals, and the bytes of the uplink after every round.
    """

    def measured(algorithm: dx.Algorithm, observed: gp.Observations) -> dx.Algorithm:
        def step(state: Any, round: dx.Round) -> Any:
            state, metrics = algorithm.step(state, round)
            found = gp.joint_objective(kernel, observed, active=ACTIVE)(state.server.params)
            return state, metrics | found

        return dx.Algorithm(algorithm.init, step)

    @jax.jit
    def run(
        penalties: Array, resolutions: Array, observed: gp.Observations, source: Any, theta: Array
    ) -> Any:
        def one(penalty: Array, resolution: Array) -> Any:
            adapt = dx.server.residual_balancing(low=1e-12)
            algorithm = gp.slim_kl(
                kernel,
                agents,
                penalty,  # type: ignore[arg-type]
                resolution=resolution,  # type: ignore[arg-type]
                adapt=adapt,
                **options,
            )
            watched = measured(algorithm, observed)
            state = watched.init(KEY, theta)
            state, metrics = dx.rollout(watched, state, source, KEY, rounds)
            return state.server.params, metrics

        return jax.lax.map(lambda given: one(*given), (penalties, resolutions))

    return run


def prepared(
    kernel: gp.MultipleKernel, agents: gp.Agents, noise: float
) -> tuple[gp.Observations, dx.Federation, Array]:
    """What the agents have observed, the source of rounds and the first weights."""
    observed = gp.observe(kernel, agents, noise)
    return observed, gp.observing(observed), gp.starting_weights(kernel, agents)


@functools.partial(jax.jit, static_argnums=0)
def predictions(
    kernel: gp.MultipleKernel,
    theta: Array,
    agents: gp.Agents,
    whole: gp.Agents,
    noise: Array,
    points: Array,
) -> dict[str, Array]:
    """Means at the points: of each agent, fused, and of all data together for weights they share."""
    kept = jnp.maximum(theta, 0)
    each = gp.predict(kernel, kept, agents, noise, points)
    found = {"agents": each.mean, "fused": gp.fused(each).mean}
    if kept.ndim == 1:
        found["global"] = gp.predict(kernel, kept, whole, noise, points).mean[0]
    return found


def squared_error(mean: np.ndarray, held_out: np.ndarray) -> Any:
    """The mean over the points, by agent where there are several."""
    return np.mean(np.square(mean - held_out), axis=-1)
