"""Weights for changes that count by the step, so that who takes more steps pulls no harder."""

import numpy as np

from dflax import validation
from dflax.asynchronous.timetable import Timetable


def normalised(timetable: Timetable) -> Timetable:
    """Weights `d_i Q`, with Q the mean local steps of the changes that a step of the server applies.

        x = x + sum_i d_i Q (y_i - x^v_i) / Q_i

    That is FedCompass+N, by the rule of FedNova: give the result to `asynchronous_server` with
    `per_step=True`, which divides by the client's own steps Q_i. Where all take equally many it changes
    nothing.

    Args:
      timetable: in which clients take different numbers of local steps.

    Raises:
      TypeError: naming the argument.

    References:
      Li et al., arXiv 2309.14675; Wang et al., arXiv 2007.07481 (FedNova).
    """
    fix = "Make one with dflax.asynchronous.fedcompass."
    validation.instance("timetable", timetable, Timetable, fix)
    steps, made = timetable.steps.astype(np.float64), dict[int, float]()
    # A change that was kept has the steps with which it was made.
    for place in np.flatnonzero(timetable.later | (timetable.steps == 0)).tolist():
        client = int(timetable.clients[place])
        if timetable.later[place]:
            made[client] = steps[place]
        else:
            steps[place] = made[client]
    of_step, applied = timetable.of_step, timetable.applied
    length = len(timetable.time)
    count = np.bincount(of_step, applied, length)
    mean = np.bincount(of_step, applied * steps, length) / np.maximum(count, 1)
    return timetable._replace(weights=timetable.weights * mean[of_step])
