"""PolicyFlow: PPO for flow policies, with a ratio that needs no ODE, and Brownian regularisation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.generative.path import Path, along, check_path, noised, rectified
from dflax.generative.times import Times, on_grid
from dflax.models.diffusion.noised import Noised
from dflax.rl.advantages import standardised
from dflax.rl.distributions import Gaussian
from dflax.rl.environment import Environment
from dflax.rl.experience import Reference, Sample, Sizes, on_policy, value_loss
from dflax.rl.flow.interpolated import (
    RatioError,
    brownian_residual,
    log_shift_ratio,
    ratio_error,
)
from dflax.rl.flow.policy import FlowPolicy, require_policy
from dflax.rl.learner import Learner
from dflax.rl.surrogate import clipped

Weight = float | Float[Array, ""] | Callable[[Int[Array, ""]], Float[Array, ""]]
LARGEST = 10.0


class Carried(NamedTuple):
    """What is noted with an action: the noise it came from, where the flow led, and V.

    Attributes:
      start: z, `[..., D]`.
      end: where the flow carried z, `[..., D]`; the action is that and Gaussian noise.
      value: V, `[...]`.
    """

    start: Float[Array, "... D"]
    end: Float[Array, "... D"]
    value: Float[Array, "..."]


def policyflow(
    environment: Environment,
    policy: FlowPolicy,
    optimizer: optax.GradientTransformation,
    *,
    flow_steps: int = 5,
    path: Path | None = None,
    times: Times | None = None,
    draws: int = 1,
    interpolant: float | Float[Array, ""] = 0.0,
    brownian_weight: Weight = 0.02,
    entropy_weight: float | Float[Array, ""] = 0.01,
    environments: int = 4,
    steps: int = 128,
    epochs: int = 5,
    minibatches: int = 4,
    discount: float | Float[Array, ""] = 0.99,
    decay: float | Float[Array, ""] = 0.95,
    clip: float | Float[Array, ""] = 0.2,
    value_clip: float | Float[Array, ""] | None = None,
    value_weight: float | Float[Array, ""] = 0.5,
    bootstrap: bool = True,
) -> Learner:
    """PolicyFlow.

    An action is `phi(z; s) + n`, phi the flow from z ~ N(0, I), n ~ N(0, sigma^2). The rollout keeps z
    and phi. With a time t for each sample, and ^ for what gathered the rollout,

        x_t = a(t) phi^ + s(t) z + g(t) xi,     du = u(x_t, t) - u^(x_t, t)
        rho = N(n; - du, sigma^2) / N(n; 0, sigma^^2)
        eta = s(t) u(x_t, t) + eps^             see `brownian_residual`
        loss = - mean min(rho A, clip(rho, 1 - eps, 1 + eps) A) + w_b mean |eta|^2
               - w_g/2 sum log(2 pi e sigma^2) + c_v/2 mean (V - R)^2

    with A standardised in each minibatch. - du stands for how much further the new flow carries z; no
    equation is solved outside of the rollout. Time is that of `dflax.generative`, see `FlowPolicy`; the
    paper's is 1 - t. With u of the observation alone and z = 0 this is PPO.

    Args:
      environment: see `Environment`; actions are `[D]`, and clipped inside of it alone.
      policy: see `FlowPolicy`.
      optimizer: an optax optimiser, with its clipping of gradients.
      flow_steps: S >= 1 of Euler's steps in the rollout.
      path: from phi to z; default `dflax.generative.rectified()`; the trigonometric one is `cosine()`.
      times: law of t, `(key, B) -> [B]`; default `on_grid(flow_steps)`, the solver's own times;
        `dflax.generative.uniform()` for all of [0, 1].
      draws: times for each sample, >= 1; their clipped objectives are averaged.
      interpolant: g(t) = interpolant sqrt(t (1 - t)), >= 0; traceable.
      brownian_weight: w_b >= 0, traceable; or a function of the number of rounds learned, such as a
        schedule of optax.
      entropy_weight: w_g >= 0; traceable.
      environments: E >= 1.
      steps: T >= 1.
      epochs: >= 1.
      minibatches: >= 1; must divide T E.
      discount: gamma in [0, 1]; traceable.
      decay: lambda in [0, 1]; traceable.
      clip: eps > 0; traceable.
      value_clip: see `ppo`.
      value_weight: c_v >= 0; traceable.
      bootstrap: see `ppo`.

    Returns:
      A `Learner`. Metrics: those of `rollout` and `clipped`, `loss`, `policy_loss`, `value_loss`,
      `entropy` of n, `deviation` (mean sigma), `brownian` (mean |eta|^2), `brownian_weight`, `shift`
      (mean |du|).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Yang et al., PolicyFlow, arXiv 2602.01156.
    """
    require_policy(policy)
    validation.integer("flow_steps", flow_steps, low=1, fix="A flow takes at least one step.")
    path = rectified() if path is None else path
    check_path(path)
    times = on_grid(flow_steps) if times is None else times
    validation.function("times", times, "It gets a key and a number of samples.", takes=2)
    validation.integer("draws", draws, low=1)
    validation.real("interpolant", interpolant, low=0.0, scalar=True)
    weight = weight_of("brownian_weight", brownian_weight)
    validation.real("entropy_weight", entropy_weight, low=0.0, scalar=True)
    validation.real("clip", clip, low=0.0, low_open=True, scalar=True)
    if value_clip is not None:
        validation.real("value_clip", value_clip, low=0.0, low_open=True, scalar=True)
    validation.real("value_weight", value_weight, low=0.0, scalar=True)

    def act(params: Params, seen: Array, key: Key[Array, ""]) -> tuple[Array, Carried]:
        start_key, noise_key = jax.random.split(key)
        start = jax.random.normal(start_key, (seen.shape[0], policy.actions))
        end = policy.transported(params, seen, start, flow_steps)
        law = Gaussian(end, policy.log_deviation(params))
        return law.draw(noise_key), Carried(start, end, policy.value(params, seen))

    def loss(
        params: Params, reference: Reference, batch: Sample, key: Key[Array, ""]
    ) -> tuple[Array, Metrics]:
        def one(key: Key[Array, ""]) -> tuple[Array, Metrics]:
            points = interpolated(path, times, interpolant, batch, key)
            flow = flow_terms(policy, path, params, reference.params, batch, points)
            advantage = standardised(batch.advantage, batch.counted)
            moved = clipped(flow.log_ratio, advantage, clip, weights=batch.counted)
            parts = {
                "policy_loss": -mean(moved.objective),
                "brownian": mean(batch.counted * jnp.sum(flow.residual**2, axis=-1)),
                "shift": mean(batch.counted * jnp.linalg.norm(flow.shift, axis=-1)),
            }
            return parts["policy_loss"], parts | moved.metrics

        def mean(values: Array) -> Array:
            return jnp.sum(values) / jnp.maximum(jnp.sum(batch.counted), 1.0)

        keys = jax.random.split(key, draws)
        measured = one(keys[0])[1] if draws == 1 else _means(jax.vmap(one)(keys)[1])
        value = policy.value(params, batch.observation)
        log_deviation = policy.log_deviation(params)
        measured |= {
            "value_loss": value_loss(value, batch, value_clip),
            "entropy": Gaussian(jnp.zeros_like(log_deviation), log_deviation).entropy(),
            "deviation": jnp.mean(jnp.exp(log_deviation)),
            "brownian_weight": weight(reference.round),
        }
        whole = (
            measured["policy_loss"]
            + measured["brownian_weight"] * measured["brownian"]
            - entropy_weight * measured["entropy"]
            + value_weight * measured["value_loss"]
        )
        return whole, measured

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


class FlowTerms(NamedTuple):
    """What PolicyFlow's loss is made of, for each sample."""

    log_ratio: Float[Array, " B"]
    residual: Float[Array, "B D"]
    shift: Float[Array, "B D"]


def interpolated(
    path: Path, times: Times, interpolant: Any, batch: Sample, key: Key[Array, ""]
) -> Noised:
    """A point of the path between z and where the flow led, for each sample, and its time."""
    time_key, noise_key = jax.random.split(key)
    start, end = batch.noted.start, batch.noted.end
    t = times(time_key, start.shape[0])
    x = noised(path, end, start, t)
    if not (isinstance(interpolant, float) and interpolant == 0.0):
        spread = interpolant * jnp.sqrt(jnp.maximum(t * (1.0 - t), 0.0))
        x = x + along(spread, jax.random.normal(noise_key, x.shape, x.dtype))
    return Noised(x, t, batch.observation)


def flow_terms(
    policy: FlowPolicy,
    path: Path,
    params: Params,
    reference: Params,
    batch: Sample,
    points: Noised,
) -> FlowTerms:
    """Log ratio, residual and shift of each sample; gradients flow through `params` alone."""
    points = jax.lax.stop_gradient(points)
    u = policy.velocity(params, points)
    frozen = jax.lax.stop_gradient(policy.velocity(reference, points))
    old = jax.lax.stop_gradient(policy.log_deviation(reference))
    noise = jax.lax.stop_gradient(batch.action - batch.noted.end)
    shift = frozen - u
    ratio = log_shift_ratio(noise, shift, policy.log_deviation(params), old)
    residual = brownian_residual(path, u, frozen, points.x, points.time)
    return FlowTerms(jnp.clip(ratio, -LARGEST, LARGEST), residual, shift)


def interpolation_error(
    policy: FlowPolicy,
    params: Params,
    reference: Params,
    batch: Sample,
    key: Key[Array, ""],
    *,
    flow_steps: int = 5,
    path: Path | None = None,
    times: Times | None = None,
) -> RatioError:
    """The interpolated ratio beside the exact one, for which the new flow carries the stored noise.

    Args:
      policy: see `FlowPolicy`.
      params: now.
      reference: those that gathered the samples.
      batch: samples with `Carried` notes.
      key: of the times.
      flow_steps: S of the rollout.
      path: as for `policyflow`.
      times: as for `policyflow`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_policy(policy)
    validation.model("params", params)
    validation.model("reference", reference)
    validation.instance("batch", batch, Sample)
    validation.typed_key("key", key)
    validation.integer("flow_steps", flow_steps, low=1)
    path = rectified() if path is None else path
    check_path(path)
    times = on_grid(flow_steps) if times is None else times
    validation.function("times", times, "It gets a key and a number of samples.", takes=2)
    points = interpolated(path, times, 0.0, batch, key)
    flow = flow_terms(policy, path, params, reference, batch, points)
    seen, start, end = batch.observation, batch.noted.start, batch.noted.end
    exact = policy.transported(params, seen, start, flow_steps) - end
    deviations = (policy.log_deviation(params), policy.log_deviation(reference))
    return ratio_error(batch.action - end, flow.shift, exact, *deviations)


def weight_of(name: str, weight: Any) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """A weight as a function of the round: a number >= 0, or already one."""
    if callable(weight):
        validation.function(name, weight, "It gets the number of rounds learned.", takes=1)
        return lambda round: jnp.asarray(weight(round), jnp.float32)
    validation.real(name, weight, low=0.0, scalar=True)
    return lambda round: jnp.asarray(weight, jnp.float32)


def _means(measured: Metrics) -> Metrics:
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), measured)
