"""What a network of diffusion or flow sees, and how it sees time."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dflax import validation


class Noised(NamedTuple):
    """Noised examples: the inputs of denoisers, routers and fields.

    Attributes:
      x: `[B, ...]`.
      time: `[B]` in [0, 1], 0 for data and 1 for noise.
      condition: `[B, ...]` class numbers or what else is known of each example; None for nothing.
    """

    x: Float[Array, "B ..."]
    time: Float[Array, " B"]
    condition: PyTree[Array] | None = None


def time_features(
    time: Float[Array, " B"], features: int, *, highest: float = 1000.0
) -> Float[Array, "B features"]:
    """Sines and cosines of the time at `features / 2` frequencies from 1 to `highest`, log-spaced.

        sin(w_j t), cos(w_j t),   w_j = highest^(j / (features / 2 - 1))

    Args:
      time: t in [0, 1].
      features: even, >= 4.
      highest: radians per unit of time, > 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    time = jnp.asarray(validation.array("time", time, kind="real", shape=("B",)))
    check_time_features(features, highest)
    powers = jnp.arange(features // 2) / (features // 2 - 1)
    angles = time[:, None] * (highest**powers).astype(time.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def check_time_features(features: int, highest: float, name: str = "features") -> None:
    """Refuse a number of features that is odd or below 4, and a frequency of at most 1."""
    validation.integer(name, features, low=4)
    if features % 2:
        raise ValueError(f"{name} must be even, half sines and half cosines, got {features}.")
    validation.real("highest", highest, low=1.0, low_open=True, scalar=True)
