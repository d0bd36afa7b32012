"""What is read off curves of accuracy over rounds."""

import numpy as np
from jaxtyping import Float


def around(
    curves: Float[np.ndarray, "... T"], round: int, width: int = 6
) -> Float[np.ndarray, "..."]:
    """Accuracy "at round r": the mean over the last `width` rounds up to it."""
    return curves[..., max(round - width, 0) : round].mean(-1)


def rounds_to(
    curves: Float[np.ndarray, "... T"], target: float, width: int = 3
) -> Float[np.ndarray, "..."]:
    """The first round at which the mean of the last `width` reaches the target; infinity if none."""
    smooth = np.lib.stride_tricks.sliding_window_view(curves, width, axis=-1).mean(-1)
    reached = smooth >= target
    return np.where(reached.any(-1), reached.argmax(-1) + width, np.inf)


def spread(values: np.ndarray, digits: int = 3) -> str:
    """Mean and deviation over seeds, for a table."""
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def first_round(reached: np.ndarray) -> np.ndarray:
    """First round, counted from 1, in which each run has arrived; T + 1 where none has."""
    return np.where(reached.any(-1), reached.argmax(-1) + 1, reached.shape[-1] + 1)
