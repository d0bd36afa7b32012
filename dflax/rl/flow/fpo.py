"""Flow policy optimisation (FPO): PPO whose ratio is a difference of flow-matching losses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.generative import targets
from dflax.generative.path import noised, rectified
from dflax.generative.times import Times, on_grid
from dflax.models.diffusion.noised import Noised
from dflax.rl.advantages import standardised
from dflax.rl.environment import Environment
from dflax.rl.experience import Reference, Sample, Sizes, on_policy, value_loss
from dflax.rl.flow.policy import FlowPolicy, require_policy
from dflax.rl.learner import Learner
from dflax.rl.surrogate import clipped


class Matched(NamedTuple):
    """What is noted with an action: M noises and times, the losses there, and V.

    Attributes:
      noise: `[..., M, D]`.
      time: `[..., M]`.
      loss: `[..., M]`, of the parameters that acted.
      value: V, `[...]`.
    """

    noise: Float[Array, "... M D"]
    time: Float[Array, "... M"]
    loss: Float[Array, "... M"]
    value: Float[Array, "..."]


def fpo(
    environment: Environment,
    policy: FlowPolicy,
    optimizer: optax.GradientTransformation,
    *,
    flow_steps: int = 10,
    draws: int = 8,
    as_noise: bool = True,
    times: Times | None = None,
    environments: int = 4,
    steps: int = 128,
    epochs: int = 16,
    minibatches: int = 4,
    discount: float | Float[Array, ""] = 0.995,
    decay: float | Float[Array, ""] = 0.95,
    clip: float | Float[Array, ""] = 0.05,
    value_weight: float | Float[Array, ""] = 0.5,
    bootstrap: bool = True,
) -> Learner:
    """Flow policy optimisation (FPO).

    An action is the flow's own sample, without noise on top. With M pairs (e_i, t_i) of noise and time
    drawn when the action a was taken, and `matching_losses` l_i of them then and now,

        rho  = exp(mean_i l_i then - mean_i l_i now)
        loss = - mean min(rho A, clip(rho, 1 - eps, 1 + eps) A) + c_v/2 mean (V - R)^2

    In the authors' code advantages are estimated anew in each minibatch; here once a rollout, as in
    PPO. Time is that of `dflax.generative`. The policy's deviation is not used.

    Args:
      environment: see `Environment`.
      policy: see `FlowPolicy`.
      optimizer: an optax optimiser.
      flow_steps: S >= 1 of Euler's steps in the rollout.
      draws: M >= 1.
      as_noise: whether the error is that of the noise the velocity stands for; else of the velocity.
      times: law of t; default `on_grid(flow_steps)`.
      environments: E >= 1.
      steps: T >= 1.
      epochs: >= 1.
      minibatches: >= 1; must divide T E.
      discount: gamma in [0, 1]; traceable.
      decay: lambda in [0, 1]; traceable.
      clip: eps > 0; traceable.
      value_weight: c_v >= 0; traceable.
      bootstrap: see `ppo`.

    Returns:
      A `Learner`. Metrics: those of `rollout` and `clipped`, `loss`, `policy_loss`, `value_loss`,
      `matching_loss`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      McAllister et al., Flow Matching Policy Gradients, arXiv 2507.21053.
    """
    require_policy(policy)
    validation.integer("flow_steps", flow_steps, low=1, fix="A flow takes at least one step.")
    validation.integer("draws", draws, low=1)
    validation.flag("as_noise", as_noise)
    times = on_grid(flow_steps) if times is None else times
    validation.function("times", times, "It gets a key and a number of samples.", takes=2)
    validation.real("clip", clip, low=0.0, low_open=True, scalar=True)
    validation.real("value_weight", value_weight, low=0.0, scalar=True)

    def act(params: Params, seen: Array, key: Key[Array, ""]) -> tuple[Array, Matched]:
        start_key, noise_key, time_key = jax.random.split(key, 3)
        size = (seen.shape[0], policy.actions)
        start = jax.random.normal(start_key, size)
        action = policy.transported(params, seen, start, flow_steps)
        noise = jax.random.normal(noise_key, (size[0], draws, size[1]))
        time = times(time_key, size[0] * draws).reshape(size[0], draws)
        loss = matching_losses(policy, params, seen, action, noise, time, as_noise=as_noise)
        return action, Matched(noise, time, loss, policy.value(params, seen))

    def loss(
        params: Params, reference: Reference, batch: Sample, key: Key[Array, ""]
    ) -> tuple[Array, Metrics]:
        noted = batch.noted
        pairs = (noted.noise, noted.time)
        seen, action = batch.observation, batch.action
        now = matching_losses(policy, params, seen, action, *pairs, as_noise=as_noise)
        log_ratio = jnp.mean(noted.loss, axis=-1) - jnp.mean(now, axis=-1)
        advantage = standardised(batch.advantage, batch.counted)
        moved = clipped(log_ratio, advantage, clip, weights=batch.counted)
        total = jnp.maximum(jnp.sum(batch.counted), 1.0)
        parts = {
            "policy_loss": -jnp.sum(moved.objective) / total,
            "value_loss": value_loss(policy.value(params, seen), batch),
            "matching_loss": jnp.sum(batch.counted * jnp.mean(now, axis=-1)) / total,
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


def matching_losses(
    policy: FlowPolicy,
    params: Params,
    observation: Float[Array, "B S"],
    action: Float[Array, "B D"],
    noise: Float[Array, "B M D"],
    time: Float[Array, "B M"],
    *,
    as_noise: bool = True,
) -> Float[Array, "B M"]:
    """Flow-matching losses of actions, means over their D numbers.

        x_t = (1 - t) a + t e,   l = mean (e - (x_t + (1 - t) u))^2,   or   mean (u - (e - a))^2

    Args:
      policy: see `FlowPolicy`.
      params: its parameters.
      observation: `[B, S]`.
      action: a, `[B, D]`.
      noise: e, `[B, M, D]`.
      time: t, `[B, M]`.
      as_noise: the first of the two; else the second.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_policy(policy)
    validation.model("params", params)
    validation.array("action", action, kind="real", shape=("B", "D"))
    batch, dimensions = jnp.shape(action)
    validation.array("noise", noise, kind="real", shape=(batch, "M", dimensions))
    draws = jnp.shape(noise)[1]
    validation.array("time", time, kind="real", shape=(batch, draws), low=0.0, high=1.0)
    validation.array("observation", observation, kind="real")
    validation.leading_axis("observation", observation, batch)
    validation.flag("as_noise", as_noise)

    def each(rows: Any) -> Array:
        return jnp.repeat(jnp.asarray(rows), draws, axis=0)

    e, t = jnp.asarray(noise).reshape(-1, dimensions), jnp.asarray(time).reshape(-1)
    path, a = rectified(), each(action)
    x = noised(path, a, e, t)
    u = policy.velocity(params, Noised(x, t, each(observation)))
    left = e - targets.solved(targets.velocity, path, u, x, t)[1] if as_noise else u - (e - a)
    return jnp.mean(left**2, axis=-1).reshape(batch, draws)
