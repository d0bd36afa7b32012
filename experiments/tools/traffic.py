"""What gossip sends, in bytes: of a model and of a run."""

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

BYTES = 4


def model_bytes(model: PyTree[Array]) -> float:
    """The bytes of one model of float32, or of its shapes."""
    return float(BYTES * sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(model)))


def megabytes(
    models_sent: Float[np.ndarray, "... T"], bytes_each: float, clients: int
) -> Float[np.ndarray, "... T"]:
    """Megabytes that a client has sent on average after every round.

    Args:
      models_sent: by all clients in each round, the metric of every method: a message of two models,
        or of a part of one, counts as that.
      bytes_each: of a model, see `model_bytes`.
      clients: n.
    """
    return np.cumsum(models_sent, axis=-1) * (bytes_each / clients / 1e6)
