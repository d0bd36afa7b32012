"""How much of a gain over the years is the models', and how much the accelerators'."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation


class Decomposition(NamedTuple):
    """A gain as a model's factor times an accelerator's; along each path `model * hardware = total`.

    Attributes:
      total: IPW(new, new) / IPW(old, old).
      model: `[3]` the model's factor: changed first (on the old accelerator), changed last (on the new
        one), and their geometric mean.
      hardware: `[3]` the accelerator's on the same three paths.
    """

    total: Float[Array, ""]
    model: Float[Array, "3"]
    hardware: Float[Array, "3"]


def decomposition(ipw: Float[Array, "2 2"]) -> Decomposition:
    """The factors of a gain, along both orders of change.

        G = [IPW(m1, h0) / IPW(m0, h0)] [IPW(m1, h1) / IPW(m1, h0)]      the model first
          = [IPW(m1, h1) / IPW(m0, h1)] [IPW(m0, h1) / IPW(m0, h0)]      the accelerator first

    The orders differ unless the two effects multiply; the geometric means of both are symmetric, and
    their product is the total as well.

    Args:
      ipw: `[2, 2]` > 0: of the old and the new model, on the old and the new accelerator.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Saad-Falcon, Narayan et al., Intelligence per Watt, arXiv 2511.07885.
    """
    validation.array("ipw", ipw, kind="real", shape=(2, 2))
    validation.real("ipw", ipw, low=0.0, low_open=True)
    table = jnp.asarray(ipw)
    models, hardware = table[1] / table[0], table[:, 1] / table[:, 0]
    return Decomposition(
        table[1, 1] / table[0, 0],
        jnp.append(models, jnp.sqrt(models[0] * models[1])),
        jnp.append(hardware[::-1], jnp.sqrt(hardware[0] * hardware[1])),
    )
