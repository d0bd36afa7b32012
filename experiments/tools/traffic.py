"""What gossip sends, in bytes: of a message and of a run."""

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

BYTES = 4


def message_bytes(
    model: PyTree[Array], *, models: int = 1, density: float = 1.0, numbers: int = 0
) -> float:
    """The bytes of one message of float32: `4 (models d density + numbers)`, and `d / 8` for a mask.

    Args:
      model: one model of d parameters, or its shapes.
      models: how many trees of the model's form a message holds; a tracker is one more.
      density: share of the entries that is sent, in (0, 1]; below 1 a mask of d bits says which.
      numbers: single numbers beside them.
    """
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(model))
    mask = size / 8 if density < 1.0 else 0.0
    return BYTES * (models * size * density + numbers) + mask


def megabytes(
    models_sent: Float[np.ndarray, "... T"], bytes_each: float, clients: int
) -> Float[np.ndarray, "... T"]:
    """Megabytes that a client has sent on average after every round.

    Args:
      models_sent: messages of all clients in each round, the metric of every mixer.
      bytes_each: of a message, see `message_bytes`.
      clients: n.
    """
    return np.cumsum(models_sent, axis=-1) * (bytes_each / clients / 1e6)
