"""Real numbers at the door, as arrays: of any shape, so that many designs are one call."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation

Real = float | np.ndarray | Float[Array, "..."]


def numbers(name: str, value: Any, **bounds: Any) -> Float[Array, "..."]:
    """The value as an array, once `validation.real` has let it through; numbers stay weakly typed.

    Args:
      name: the argument's name, for the message.
      value: a number or an array of them, or a tracer.
      bounds: see `dflax.validation.real`.
    """
    validation.real(name, value, **bounds)
    return jnp.asarray(value)
