"""Diffusion policy policy optimisation (DPPO): every step of the sampler is an action."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.generative.path import rectified
from dflax.generative.sampling import grid, trajectory
from dflax.generative.steps import euler
from dflax.models.diffusion.noised import Noised
from dflax.rl.advantages import standardised
from dflax.rl.environment import Environment
from dflax.rl.experience import Reference, Sample, Sizes, on_policy, value_loss
from dflax.rl.flow.policy import FlowPolicy, require_policy
from dflax.rl.learner import Learner
from dflax.rl.surrogate import clipped


class Chain(NamedTuple):
    """What is noted with an action: the sampler's states, their log-probabilities, and V.

    Attributes:
      states: `[..., K + 1, D]`, from noise to the action.
      log_prob: `[..., K]`, as `chain_log_probs` has them.
      value: V, `[...]`.
    """

    states: Float[Array, "... steps D"]
    log_prob: Float[Array, "... K"]
    value: Float[Array, "..."]


def dppo(
    environment: Environment,
    policy: FlowPolicy,
    optimizer: optax.GradientTransformation,
    *,
    flow_steps: int = 10,
    deviation: float | Float[Array, ""] = 0.1,
    step_discount: float | Float[Array, ""] = 0.99,
    environments: int = 4,
    steps: int = 128,
    epochs: int = 5,
    minibatches: int = 4,
    discount: float | Float[Array, ""] = 0.99,
    decay: float | Float[Array, ""] = 0.95,
    clip: float | Float[Array, ""] = 0.01,
    first_clip: float | Float[Array, ""] = 0.001,
    clip_growth: float | Float[Array, ""] = 3.0,
    value_weight: float | Float[Array, ""] = 0.5,
    bootstrap: bool = True,
) -> Learner:
    """Diffusion policy policy optimisation (DPPO), of a flow whose sampler's steps draw noise.

        x_{k+1} ~ N(x_k + h u(x_k, t_k, s), deviation^2 I),   k = 0, ..., K - 1 from noise to the action

    Each step has a ratio of its own (see `chain_log_probs`), the advantage of the whole action times
    gamma_d^(K - 1 - k), and a clip range that grows with k (`clip_ranges`); all are averaged. The
    authors draw a step for each sample; here a sample brings all of its steps.

    Args:
      environment: see `Environment`.
      policy: see `FlowPolicy`; its deviation is not used.
      optimizer: an optax optimiser.
      flow_steps: K >= 1.
      deviation: of each step, > 0; traceable. With 0 steps would have no density.
      step_discount: gamma_d in [0, 1]; traceable.
      environments: E >= 1.
      steps: T >= 1.
      epochs: >= 1.
      minibatches: >= 1; must divide T E.
      discount: gamma in [0, 1]; traceable.
      decay: lambda in [0, 1]; traceable.
      clip: eps > 0, of the last step; traceable.
      first_clip: eps_0 > 0, of the first one; traceable.
      clip_growth: > 0; traceable.
      value_weight: c_v >= 0; traceable.
      bootstrap: see `ppo`.

    Returns:
      A `Learner`. Metrics: those of `rollout` and `clipped`, `loss`, `policy_loss`, `value_loss`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Ren et al., Diffusion Policy Policy Optimization, arXiv 2409.00588.
    """
    require_policy(policy)
    validation.integer("flow_steps", flow_steps, low=1, fix="A flow takes at least one step.")
    fix = "Steps without noise have no density, and no ratio."
    validation.real("deviation", deviation, low=0.0, low_open=True, scalar=True, fix=fix)
    validation.probability("step_discount", step_discount)
    validation.real("value_weight", value_weight, low=0.0, scalar=True)
    ranges = clip_ranges(flow_steps, clip, first_clip, clip_growth)
    kept = jnp.asarray(step_discount) ** jnp.arange(flow_steps)[::-1]
    step, way = euler(rectified(), deviation=deviation), grid(flow_steps)

    def act(params: Params, seen: Array, key: Key[Array, ""]) -> tuple[Array, Chain]:
        start_key, way_key = jax.random.split(key)
        start = jax.random.normal(start_key, (seen.shape[0], policy.actions))
        found = trajectory(policy.field(params), step, start, way, way_key, seen)
        states = jnp.moveaxis(found.states, 0, 1)
        logs = chain_log_probs(policy, params, seen, states, deviation)
        return found.states[-1], Chain(states, logs, policy.value(params, seen))

    def loss(
        params: Params, reference: Reference, batch: Sample, key: Key[Array, ""]
    ) -> tuple[Array, Metrics]:
        seen, noted = batch.observation, batch.noted
        now = chain_log_probs(policy, params, seen, noted.states, deviation)
        advantage = standardised(batch.advantage, batch.counted)[:, None] * kept
        counted = jnp.broadcast_to(batch.counted[:, None], now.shape)
        moved = clipped(now - noted.log_prob, advantage, ranges, weights=counted)
        total = jnp.maximum(jnp.sum(batch.counted), 1.0)
        parts = {
            "policy_loss": -jnp.sum(moved.objective) / (total * flow_steps),
            "value_loss": value_loss(policy.value(params, seen), batch),
        }
        whole = parts["policy_loss"] + value_weight * parts["value_loss"]
        return whole, parts | moved.metrics

    return on_policy(
        environment,
        optimizer,
        Sizes(environments, steps, epochs, minibatches),
        act=act,
        value=policy.value,
        loss=loss,
        discount=discount,
        decay=decay,
        bootstrap=bootstrap,
    )


def chain_log_probs(
    policy: FlowPolicy,
    params: Params,
    observation: Float[Array, "B S"],
    states: Float[Array, "B steps D"],
    deviation: float | Float[Array, ""],
) -> Float[Array, "B K"]:
    """Log-densities of a sampler's steps, means over D of each number's own cut to [-5, 2].

    Args:
      policy: see `FlowPolicy`.
      params: its parameters.
      observation: `[B, S]`.
      states: `[B, K + 1, D]`, from noise to the action.
      deviation: of each step, > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_policy(policy)
    validation.model("params", params)
    validation.array("states", states, kind="real", shape=("B", "steps", "D"))
    batch, points, dimensions = jnp.shape(states)
    if points < 2:
        raise ValueError(f"states must be at least 2, noise and action, got {points}.")
    validation.array("observation", observation, kind="real")
    validation.leading_axis("observation", observation, batch)
    fix = "Steps without noise have no density, and no ratio."
    validation.real("deviation", deviation, low=0.0, low_open=True, scalar=True, fix=fix)
    count = points - 1
    states = jnp.asarray(states)
    before = states[:, :-1].reshape(-1, dimensions)
    time = jnp.tile(jnp.asarray(grid(count)[:-1], states.dtype), batch)
    seen = jnp.repeat(jnp.asarray(observation), count, axis=0)
    mean = before - policy.velocity(params, Noised(before, time, seen)) / count
    away = (states[:, 1:].reshape(-1, dimensions) - mean) / deviation
    logs = -0.5 * away**2 - jnp.log(deviation) - 0.5 * math.log(2 * math.pi)
    return jnp.mean(jnp.clip(logs, -5.0, 2.0), axis=-1).reshape(batch, count)


def clip_ranges(
    flow_steps: int,
    clip: float | Float[Array, ""] = 0.01,
    first_clip: float | Float[Array, ""] = 0.001,
    clip_growth: float | Float[Array, ""] = 3.0,
) -> Float[Array, " K"]:
    """Clip ranges of the sampler's steps, exponential from the first to the last.

        eps_k = eps_0 + (eps - eps_0) (exp(c k / (K - 1)) - 1) / (exp(c) - 1)

    Args:
      flow_steps: K >= 1; one step alone has the last one's.
      clip: eps > 0; traceable.
      first_clip: eps_0 > 0; traceable.
      clip_growth: c > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("flow_steps", flow_steps, low=1)
    validation.real("clip", clip, low=0.0, low_open=True, scalar=True)
    validation.real("first_clip", first_clip, low=0.0, low_open=True, scalar=True)
    validation.real("clip_growth", clip_growth, low=0.0, low_open=True, scalar=True)
    share = jnp.linspace(0.0, 1.0, flow_steps) if flow_steps > 1 else jnp.ones(1)
    return first_clip + (clip - first_clip) * jnp.expm1(clip_growth * share) / jnp.expm1(
        clip_growth
    )
