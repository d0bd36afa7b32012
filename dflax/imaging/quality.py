"""How near an image is to the truth."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation


def psnr(estimate: Float[Array, "B X Y Z"], truth: Float[Array, "B X Y Z"]) -> Float[Array, " B"]:
    """Peak signal-to-noise ratio of magnitudes, `10 log10(max(t)^2 / mean((t - e)^2))` decibels.

    Args:
      estimate: e, usually of greatest value 1.
      truth: t.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    for name, given in (("estimate", estimate), ("truth", truth)):
        validation.array(name, given, kind="real", shape=("B", "X", "Y", "Z"))
    if jnp.shape(estimate) != jnp.shape(truth):
        raise ValueError(
            f"estimate must have truth's shape {jnp.shape(truth)}, got {jnp.shape(estimate)}."
        )
    t, e = jnp.asarray(truth), jnp.asarray(estimate)
    apart = jnp.mean(jnp.square(t - e), (1, 2, 3))
    return 10 * jnp.log10(jnp.square(t.max((1, 2, 3))) / apart)
