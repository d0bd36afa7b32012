"""Strips: what coverage is without a density."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation


def lawn_mower(agents: int, steps: int, strips: int = 12) -> Float[Array, "n steps 2"]:
    """Places of agents that sweep the unit square in vertical strips at an even speed.

    Agent i sweeps the column [i / n, (i + 1) / n], up and down in strips of the square's full height.

    Args:
      agents: n.
      steps: T >= 1.
      strips: of each agent, >= 1.

    Returns:
      `[n, T, 2]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("agents", agents, low=1)
    validation.integer("steps", steps, low=1)
    validation.integer("strips", strips, low=1)
    along = strips * (np.arange(steps) + 0.5) / steps
    number = np.minimum(along.astype(int), strips - 1)
    height = along - number
    height = np.where(number % 2 == 0, height, 1 - height)
    across = (number + 0.5) / strips
    columns = (np.arange(agents)[:, None] + across) / agents
    return jnp.asarray(np.stack([columns, np.broadcast_to(height, columns.shape)], -1))
