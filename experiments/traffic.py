"""What gossip sends, in bytes: of a model, of a run, and as an axis of a figure."""

from typing import Any

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


def sent_axis(axes: Any, megabytes_a_round: float) -> None:
    """A second scale on top of an axis of rounds, for methods that send equally much in every round."""
    top = axes.secondary_xaxis(
        "top", functions=(lambda t: t * megabytes_a_round, lambda mb: mb / megabytes_a_round)
    )
    top.set_xlabel("megabytes sent per client")


def log_megabytes(axes: Any, label: str) -> None:
    """A logarithmic axis of megabytes with plain numbers on it, few enough to be read."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axes.set(xscale="log", xlabel=label)
    low, high = axes.get_xlim()
    several = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=several))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
