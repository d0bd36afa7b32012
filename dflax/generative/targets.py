"""What a network predicts of a noised example; every target is `p(t) x_0 + q(t) eps`.

Together with `x_t = a x_0 + s eps` a prediction is two equations for x_0 and eps, so that each target
stands for every other one. A target is a function `(path, t) -> (p, q)`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax.generative.path import Path, along

Weights = tuple[Float[Array, " B"], Float[Array, " B"]]
Target = Callable[[Path, Float[Array, " B"]], Weights]


def noise(path: Path, time: Float[Array, " B"]) -> Weights:
    """eps, as DDPM predicts: p = 0, q = 1. It says nothing of x_0 where a = 0."""
    return jnp.zeros_like(time), jnp.ones_like(time)


def data(path: Path, time: Float[Array, " B"]) -> Weights:
    """x_0, as a denoiser predicts: p = 1, q = 0. It says nothing of eps where s = 0."""
    return jnp.ones_like(time), jnp.zeros_like(time)


def v(path: Path, time: Float[Array, " B"]) -> Weights:
    """`a eps - s x_0`: p = -s, q = a.

    References:
      Salimans and Ho, Progressive Distillation for Fast Sampling, arXiv 2202.00512.
    """
    return -path.noise(time), path.signal(time)


def velocity(path: Path, time: Float[Array, " B"]) -> Weights:
    """`dx_t/dt = a' x_0 + s' eps`, as flow matching predicts; `eps - x_0` on the rectified path."""
    return path.rates(time)


def value(
    target: Target,
    path: Path,
    data: Float[Array, "B ..."],
    noise: Float[Array, "B ..."],
    time: Float[Array, " B"],
) -> Float[Array, "B ..."]:
    """What a network is trained to predict: `p(t) x_0 + q(t) eps`.

    Args:
      target: one of this module.
      path: a and s.
      data: x_0.
      noise: eps.
      time: t in [0, 1].
    """
    p, q = target(path, time)
    return along(p, data) + along(q, noise)


def solved(
    target: Target,
    path: Path,
    prediction: Float[Array, "B ..."],
    x: Float[Array, "B ..."],
    time: Float[Array, " B"],
) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."]]:
    """The data and the noise that a prediction stands for.

        x_0 = (q x - s prediction) / (a q - s p),   eps = (a prediction - p x) / (a q - s p)

    Args:
      target: what is predicted.
      path: a and s.
      prediction: of the network.
      x: x_t.
      time: t; where a q = s p the two are not known (noise at a = 0, data at s = 0).

    Returns:
      x_0 and eps.
    """
    p, q = target(path, time)
    a, s = path.signal(time), path.noise(time)
    scale = 1.0 / (a * q - s * p)
    return (
        along(scale * q, x) - along(scale * s, prediction),
        along(scale * a, prediction) - along(scale * p, x),
    )


def velocity_of(
    target: Target,
    path: Path,
    prediction: Float[Array, "B ..."],
    x: Float[Array, "B ..."],
    time: Float[Array, " B"],
) -> Float[Array, "B ..."]:
    """The velocity that a prediction stands for; see `solved`."""
    if target is velocity:
        return prediction
    found, left = solved(target, path, prediction, x, time)
    return value(velocity, path, found, left, time)


__all__ = ["data", "noise", "solved", "v", "value", "velocity", "velocity_of"]


def __dir__() -> list[str]:
    return __all__
