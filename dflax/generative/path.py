"""Paths from data to noise: `x_t = a(t) x_0 + s(t) eps`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.clients import against
from dflax.data.dataset import AnyArray

Schedule = Callable[[Float[Array, "..."]], Float[Array, "..."]]


class Path(NamedTuple):
    """How an example turns into noise: `x_t = a(t) x_0 + s(t) eps`, eps ~ N(0, I), t = 0 is data.

    Any two differentiable functions on [0, 1] make one.

    Attributes:
      signal: a, `t -> a(t)`, of arrays of any shape; a(0) = 1.
      noise: s, `t -> s(t)`, >= 0; s(0) = 0.
    """

    signal: Schedule
    noise: Schedule

    def rates(self, t: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """The derivatives da/dt and ds/dt."""
        both = jax.jvp(lambda t: (self.signal(t), self.noise(t)), (t,), (jnp.ones_like(t),))
        return both[1]


def rectified() -> Path:
    """The straight path of flow matching: a = 1 - t, s = t.

    References:
      Liu et al., Flow Straight and Fast, arXiv 2209.03003; Lipman et al., arXiv 2210.02747.
    """
    return Path(lambda t: 1.0 - t, lambda t: t)


def cosine() -> Path:
    """The variance-preserving cosine path: a = cos(pi t / 2), s = sin(pi t / 2).

    References:
      Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, arXiv 2102.09672.
    """
    return Path(lambda t: jnp.cos(0.5 * jnp.pi * t), lambda t: jnp.sin(0.5 * jnp.pi * t))


def variance_preserving(
    low: float | Float[Array, ""] = 0.1, high: float | Float[Array, ""] = 20.0
) -> Path:
    """The variance-preserving diffusion whose rate grows linearly from `low` to `high`.

        log a = - (low t + (high - low) t^2 / 2) / 2,   s = sqrt(1 - a^2)

    It is the limit of DDPM's linear betas over many steps. Near t = 0 the derivative of s is without
    bound: sample times from above 0.

    Args:
      low: rate at t = 0, > 0; traceable.
      high: rate at t = 1, > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Song et al., Score-Based Generative Modeling through SDEs, arXiv 2011.13456.
    """
    validation.real("low", low, low=0.0, low_open=True, scalar=True)
    validation.real("high", high, low=0.0, low_open=True, scalar=True)

    def log_signal(t: Float[Array, "..."]) -> Float[Array, "..."]:
        return -0.5 * t * (low + 0.5 * (high - low) * t)

    return Path(
        lambda t: jnp.exp(log_signal(t)), lambda t: jnp.sqrt(-jnp.expm1(2.0 * log_signal(t)))
    )


def discrete(betas: Float[AnyArray, " T"]) -> Path:
    """DDPM's chain of T steps: abar_i = product over j <= i of (1 - beta_j), a^2 = abar_i at t = i / T.

    i counts from 1, and a = 1 at t = 0. Between steps log abar is interpolated linearly.

    Args:
      betas: `[T]` each in (0, 1), T >= 1; traceable.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Ho et al., Denoising Diffusion Probabilistic Models, arXiv 2006.11239.
    """
    validation.array("betas", betas, kind="real", shape=("T",))
    validation.real("betas", betas, low=0.0, high=1.0, low_open=True, high_open=True)
    steps = jnp.log1p(-jnp.asarray(betas, float))
    logs = jnp.concatenate([jnp.zeros(1, steps.dtype), jnp.cumsum(steps)])
    slopes = jnp.append(steps, 0.0)

    def log_power(t: Float[Array, "..."]) -> Float[Array, "..."]:
        # The grid is even: no search, which in a sampler's loop would cost more than the network.
        place = t * len(steps)
        at = jnp.clip(jnp.floor(jax.lax.stop_gradient(place)).astype(jnp.int32), 0, len(steps))
        return logs[at] + slopes[at] * (place - at)

    return Path(lambda t: jnp.exp(0.5 * log_power(t)), lambda t: jnp.sqrt(-jnp.expm1(log_power(t))))


def noised(
    path: Path,
    data: Float[AnyArray, "B ..."],
    noise: Float[AnyArray, "B ..."],
    time: Float[AnyArray, " B"],
) -> Float[Array, "B ..."]:
    """`x_t = a(t) x_0 + s(t) eps`, example by example.

    Args:
      path: a and s.
      data: x_0.
      noise: eps, of the same shape.
      time: t in [0, 1].

    Raises:
      TypeError, ValueError: naming the argument; a time outside of [0, 1].
    """
    check_path(path)
    data = jnp.asarray(validation.array("data", data, kind="real"))
    noise = jnp.asarray(
        validation.array("noise", noise, kind="real", shape=data.shape, fix="Like data.")
    )
    fix = "t = 0 is data and t = 1 is noise."
    validation.array("time", time, kind="real", shape=data.shape[:1], low=0.0, high=1.0, fix=fix)
    t = jnp.asarray(time)
    return along(path.signal(t), data) + along(path.noise(t), noise)


def along(factor: Float[Array, " B"], x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """`factor[b] x[b]`, in float32 or wider."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return against(factor, x).astype(wide) * x.astype(wide)


def check_path(path: Path, name: str = "path") -> None:
    """Refuse what is no `Path`."""
    validation.instance(name, path, Path, "For example dflax.generative.rectified().")
