"""Spectral multiscale coverage (SMC): agents even out where they have been against a density."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.population import Round
from dflax.robots.coverage.d2oc import noted_places, placed, require_agents


class Modes(NamedTuple):
    """What all agents share.

    Attributes:
      wanted: `[K]` phi_k, means of the cosine modes over the density.
      reached: `[K]` c_k, their sums over all agents and steps.
    """

    wanted: Float[Array, " K"]
    reached: Float[Array, " K"]


class Points(NamedTuple):
    """What n agents carry.

    Attributes:
      positions: `[n, 2]`.
      visited: `[n, steps, 2]`, where each was after each step; NaN for steps not done.
    """

    positions: Float[Array, "n 2"]
    visited: Float[Array, "n steps 2"]


def spectral_coverage(
    agents: int,
    steps: int,
    speed: float | Float[Array, ""],
    *,
    interval: float | Float[Array, ""] = 0.1,
    modes: int = 8,
) -> Algorithm:
    """Spectral multiscale coverage of the unit square, a time step a round; all agents share all.

        S_k = c_k - n t phi_k,   B_i = sum_k Lambda_k S_k grad f_k(p_i),   p_i <- p_i - T v B_i / |B_i|

    with f_k(p) = cos(k_1 pi p_1) cos(k_2 pi p_2) / h_k of norm 1, k in {0 .. K-1}^2, and
    Lambda_k = (1 + |k|^2)^(-3/2). Places are clipped to the square.

    Args:
      agents: n.
      steps: T >= 1, the steps of a mission; later ones do nothing.
      speed: v > 0, in sides of the square a second; traceable.
      interval: of a step, in seconds, > 0; traceable.
      modes: K >= 1 of each axis.

    Returns:
      An `Algorithm`. `init(key, positions, samples)` as of `d2oc`. Metrics: `ergodicity`,
      sum_k Lambda_k (S_k / (n t))^2.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Mathew and Mezic, Metrics for Ergodicity and Design of Ergodic Dynamics for Multi-Agent Systems,
      Physica D 240, 2011.
    """
    validation.integer("agents", agents, low=1)
    validation.integer("steps", steps, low=1)
    validation.real("speed", speed, low=0.0, low_open=True, scalar=True)
    validation.real("interval", interval, low=0.0, low_open=True, scalar=True)
    validation.integer("modes", modes, low=1)
    waves = np.stack(np.meshgrid(np.arange(modes), np.arange(modes), indexing="ij"), -1)
    waves = waves.reshape(-1, 2)
    norms = np.sqrt(np.where(waves == 0, 1.0, 0.5).prod(1))
    decay = (1.0 + np.square(waves).sum(1)) ** -1.5

    def values(points: Array) -> Array:
        """`[P, K]` of points `[P, 2]`."""
        angles = jnp.pi * points[:, None] * jnp.asarray(waves, points.dtype)
        return jnp.prod(jnp.cos(angles), -1) / jnp.asarray(norms, points.dtype)

    def slopes(points: Array) -> Array:
        """`[P, K, 2]`."""
        pi_k = jnp.pi * jnp.asarray(waves, points.dtype)
        angles = points[:, None] * pi_k
        crossed = jnp.cos(angles)[..., ::-1]
        return -pi_k * jnp.sin(angles) * crossed / jnp.asarray(norms, points.dtype)[:, None]

    def init(
        key: Key[Array, ""], params: Float[Array, "n 2"], samples: Float[Array, "N 2"]
    ) -> FederatedState:
        positions, points = placed(key, params, samples, agents)
        wanted = values(points).mean(0)
        visited = jnp.full((agents, steps, 2), jnp.nan, positions.dtype)
        return FederatedState(
            jnp.int32(0), Modes(wanted, jnp.zeros_like(wanted)), Points(positions, visited)
        )

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        require_agents(round, agents)
        (wanted, reached), (p, visited) = state.server, state.clients
        weight = jnp.asarray(decay, p.dtype)
        ahead = weight * (reached - agents * state.round * wanted)
        pull = jnp.einsum("k,pkc->pc", ahead, slopes(p))
        size = jnp.sqrt(jnp.sum(jnp.square(pull), -1, keepdims=True))
        flies = state.round < steps
        way = interval * speed * pull / jnp.maximum(size, 1e-30)
        after = jnp.where(flies, jnp.clip(p - way, 0, 1), p)
        reached = jnp.where(flies, reached + values(after).sum(0), reached)
        visited = noted_places(visited, after, jnp.full(agents, flies), state.round)
        done = jnp.minimum(state.round + 1, steps)
        apart = reached / (agents * done) - wanted
        metrics = {"ergodicity": jnp.sum(weight * jnp.square(apart))}
        after_round = FederatedState(
            state.round + 1, Modes(wanted, reached), Points(after, visited)
        )
        return after_round, metrics

    return Algorithm(init, step)
