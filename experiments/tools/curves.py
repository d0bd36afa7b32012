"""What is read off curves of accuracy over rounds, and over seconds."""

import numpy as np
from jaxtyping import Bool, Float


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


def held(
    times: Float[np.ndarray, "... T"],
    values: Float[np.ndarray, "... T"],
    at: Float[np.ndarray, " R"],
) -> Float[np.ndarray, "... R"]:
    """The values that stood at given seconds: each holds from its own time until the next.

    Args:
      times: when each value was measured, nowhere falling; the first not after any of `at`.
      values: of the same shape.
      at: seconds.
    """
    flat = zip(times.reshape(-1, times.shape[-1]), values.reshape(-1, times.shape[-1]), strict=True)
    rows = [own[np.searchsorted(when, at, side="right") - 1] for when, own in flat]
    return np.reshape(rows, (*times.shape[:-1], len(at)))


def seconds_to(
    times: Float[np.ndarray, "... T"], reached: Bool[np.ndarray, "... T"]
) -> Float[np.ndarray, "..."]:
    """The first time at which it is reached; infinity if never."""
    first = np.take_along_axis(times, reached.argmax(-1)[..., None], axis=-1)[..., 0]
    return np.where(reached.any(-1), first, np.inf)


def span(values: np.ndarray, digits: int = 3) -> str:
    """Mean, least and largest over seeds, for a table."""
    shown = [f"{v:.{digits}f}" for v in (values.mean(), values.min(), values.max())]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"
