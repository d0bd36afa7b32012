"""One step of a sampler from time t to an earlier time: Euler, Heun, DDIM with or without noise."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.generative.fields import Field, check_target
from dflax.generative.path import Path, along, check_path
from dflax.generative.targets import Target, solved, velocity, velocity_of
from dflax.models.diffusion.noised import Noised


class Gaussian(NamedTuple):
    """Where a step leads: N(mean, deviation^2 I).

    Attributes:
      mean: `[B, ...]`.
      deviation: `[B]`, >= 0; all 0 for a step without noise.
    """

    mean: Float[Array, "B ..."]
    deviation: Float[Array, " B"]

    def draw(self, key: Key[Array, ""]) -> Float[Array, "B ..."]:
        """A sample."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + along(self.deviation, noise)

    def log_prob(self, x: Float[Array, "B ..."]) -> Float[Array, " B"]:
        """`- |x - mean|^2 / (2 deviation^2) - D log(deviation) - D log(2 pi) / 2`, `[B]`.

        A sum over the D entries of an example; divide by D where the mean is wanted. It is not finite
        where the deviation is 0.
        """
        away = (x - self.mean).reshape(x.shape[0], -1)
        squares = jnp.sum(jnp.square(away), axis=1) / jnp.square(self.deviation)
        entries = away.shape[1]
        return -0.5 * squares - entries * (jnp.log(self.deviation) + 0.5 * jnp.log(2 * jnp.pi))


class Step(NamedTuple):
    """A step of a sampler; a `Gaussian` of what comes next.

    Attributes:
      move: `(field, noised, earlier [B], key) -> Gaussian`, from `noised.time` to `earlier`.
      random: whether it draws anything, so that its log-probabilities exist (static).
      floored: whether its deviation stays above 0 at time 0 (static).
    """

    move: Callable[[Field, Noised, Float[Array, " B"], Key[Array, ""]], Gaussian]
    random: bool = False
    floored: bool = False


def euler(
    path: Path, target: Target = velocity, *, deviation: float | Float[Array, ""] = 0.0
) -> Step:
    """`x <- N(x + (t' - t) u(x, t), deviation^2 I)`, u the velocity that a prediction stands for.

    Noise of one size in every step makes samples spread out more than the flow says; policies that are
    trained by the log-probabilities of their steps live with that.

    Args:
      path: from data to noise.
      target: what the field predicts.
      deviation: of the noise that each step adds, >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_path(path)
    check_target(target)
    validation.real("deviation", deviation, low=0.0, scalar=True)
    random = validation.is_traced(deviation) or float(deviation) > 0.0

    def move(
        field: Field, noised: Noised, earlier: Float[Array, " B"], key: Key[Array, ""]
    ) -> Gaussian:
        x, t = noised.x, noised.time
        u = velocity_of(target, path, field(noised, key), x, t)
        return Gaussian(x + along(earlier - t, u), jnp.full_like(t, deviation))

    return Step(move, random=random, floored=random)


def heun(path: Path, target: Target = velocity) -> Step:
    """Heun's rule of second order: the mean of the velocities at both ends of an Euler step.

        y = x + (t' - t) u(x, t),   x <- x + (t' - t) (u(x, t) + u(y, t')) / 2

    Two evaluations a step. Targets that say nothing of the velocity at t' = 0 (the data; any target
    where s' has no bound there) want a last time above 0.

    Args:
      path: from data to noise.
      target: what the field predicts.

    Raises:
      TypeError: naming the argument.

    References:
      Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364.
    """
    check_path(path)
    check_target(target)

    def move(
        field: Field, noised: Noised, earlier: Float[Array, " B"], key: Key[Array, ""]
    ) -> Gaussian:
        first_key, second_key = jax.random.split(key)
        x, t = noised.x, noised.time
        first = velocity_of(target, path, field(noised, first_key), x, t)
        ahead = noised._replace(x=x + along(earlier - t, first), time=earlier)
        second = velocity_of(target, path, field(ahead, second_key), ahead.x, earlier)
        return Gaussian(x + along(0.5 * (earlier - t), first + second), jnp.zeros_like(t))

    return Step(move)


def ddim(
    path: Path,
    target: Target = velocity,
    *,
    eta: float | Float[Array, ""] = 0.0,
    least: float | Float[Array, ""] = 0.0,
    clip: float | Float[Array, ""] | None = None,
) -> Step:
    """DDIM on any path: to where the predicted data and noise lead, with a share of fresh noise.

        x_0, eps = what the prediction stands for
        sigma    = max(eta s' sqrt(1 - (a s' / (a' s))^2), least)
        x       <- N(a' x_0 + sqrt(s'^2 - sigma^2) eps, sigma^2 I)

    (a, s) at t and (a', s') at t'. eta = 0 is DDIM, which on the rectified path is Euler's rule; eta = 1
    draws from the posterior of the Markov chain, DDPM's. Steps with noise have log-probabilities, which
    policy gradients need.

    Args:
      path: from data to noise.
      target: what the field predicts.
      eta: >= 0; traceable.
      least: smallest deviation, >= 0; traceable. At the last step to t' = 0 the deviation is 0 without
        it, and the log-probability without bound.
      clip: the predicted data are cut to [-clip, clip] (the noise is not computed anew); None: not.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Song et al., Denoising Diffusion Implicit Models, arXiv 2010.02502; Black et al., Training
      Diffusion Models with Reinforcement Learning, arXiv 2305.13301.
    """
    check_path(path)
    check_target(target)
    validation.real("eta", eta, low=0.0, scalar=True)
    validation.real("least", least, low=0.0, scalar=True)
    if clip is not None:
        validation.real("clip", clip, low=0.0, low_open=True, scalar=True)
    floored = validation.is_traced(least) or float(least) > 0.0
    random = floored or validation.is_traced(eta) or float(eta) > 0.0

    def move(
        field: Field, noised: Noised, earlier: Float[Array, " B"], key: Key[Array, ""]
    ) -> Gaussian:
        x, t = noised.x, noised.time
        found, noise = solved(target, path, field(noised, key), x, t)
        found = found if clip is None else jnp.clip(found, -clip, clip)
        a, s = path.signal(t), path.noise(t)
        signal, left = path.signal(earlier), path.noise(earlier)
        fresh = jnp.maximum(1.0 - jnp.square(a * left / (signal * s)), 0.0)
        deviation = jnp.maximum(eta * left * jnp.sqrt(fresh), least)
        kept = jnp.sqrt(jnp.maximum(jnp.square(left) - jnp.square(deviation), 0.0))
        return Gaussian(along(signal, found) + along(kept, noise), deviation)

    return Step(move, random=random, floored=floored)
