"""Safety ellipses in polar form, and the discrete barrier that bounds how fast they are approached."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation

# Half an axis of an obstacle that is not there, in metres.
VOID = 1e-6


class Barrier(NamedTuple):
    """The factors of a barrier over doubling stretches of time.

    Attributes:
      kept: `[levels, Nt]`, prod of (1 - gamma) over the last 2^level times; 0 where there are fewer.
    """

    kept: Float[Array, "levels Nt"]

    def bound(self, distance: Float[Array, "... Nt"]) -> Float[Array, "... Nt"]:
        """The least distances above the given ones that meet the condition, time after time.

            d_0 <- max(d_0, 1);   d_k <- max(d_k, 1 + (1 - gamma_k) (d_{k-1} - 1))

        A maximum over all earlier times, found in log2(Nt) steps.
        """
        h = jnp.maximum(distance - 1, 0)
        none = [(0, 0)] * (h.ndim - 1)
        for level in range(self.kept.shape[0]):
            late = jnp.pad(h, [*none, (1 << level, 0)])[..., : h.shape[-1]]
            h = jnp.maximum(h, self.kept[level].astype(h.dtype) * late)
        return jnp.maximum(distance, 1 + h)


def discrete_barrier(rate: float | Float[Array, ""], steps: int) -> Barrier:
    """The discrete barrier condition on the distance d of a point from an obstacle's ellipse.

        h_k = d_k - 1 >= 0,   h_{k+1} >= (1 - gamma_k) h_k,   d^2 = (dx / a)^2 + (dy / b)^2

    A small gamma approaches slowly, gamma = 1 only stays outside. gamma_k rises linearly from `rate` at
    the first time to 1 at the last, as what is predicted for later is less certain.

    Args:
      rate: gamma in (0, 1]; traceable.
      steps: Nt >= 2.

    Returns:
      The `Barrier` with its `bound`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.probability("rate", rate, low_open=True)
    validation.integer("steps", steps, low=2)
    own = jnp if validation.is_traced(rate) else np
    times = np.arange(steps)
    kept = [own.where(times < 1, 0, (1 - rate) * (1 - times / (steps - 1)))]
    while 1 << len(kept) < steps:
        apart = 1 << (len(kept) - 1)
        late = own.pad(kept[-1], (apart, 0))[:steps]
        kept.append(kept[-1] * late)
    return Barrier(jnp.asarray(own.stack(kept), jnp.result_type(float)))


def elliptic(
    away: Float[Array, "... 2 Nt"], axes: Float[Array, "... 2 Nt"]
) -> Float[Array, "... Nt"]:
    """The distance d of points `away` from an ellipse's centre in units of its half axes: 1 on it."""
    return jnp.sqrt(jnp.sum(jnp.square(away / jnp.maximum(axes, VOID)), axis=-2))


def outside(
    away: Float[Array, "... 2 Nt"], axes: Float[Array, "... 2 Nt"], barrier: Barrier
) -> Float[Array, "... 2 Nt"]:
    """The points in the same directions whose distances meet the barrier: `away` where it does.

    This is the closed form of the polar variables: away = (a d cos alpha, b d sin alpha) is met by
    alpha = atan2(a dy, b dx) and d = |(dx / a, dy / b)|, so that raising d stretches `away`.
    """
    distance = elliptic(away, axes)
    raised = barrier.bound(distance)
    return away * (raised / jnp.maximum(distance, 1e-12))[..., None, :]
