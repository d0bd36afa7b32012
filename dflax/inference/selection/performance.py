"""The performance table: how long every task took with every method, as far as it was tried."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dflax import validation


class Performance(NamedTuple):
    """Running times of n tasks with K methods.

    Attributes:
      seconds: `[n, K]` > 0; what stands where nothing was observed is never read.
      observed: `[n, K]` which of them were measured.
    """

    seconds: Float[Array, "n K"]
    observed: Bool[Array, "n K"]


class Centred(NamedTuple):
    """A table of log-times, split into a task's level and what a method adds to it.

    Attributes:
      relative: `[n, K]` log seconds less the row's level; 0 where nothing was observed.
      level: `[n]` mean log seconds over the row's observed methods; 0 of a row without any.
    """

    relative: Float[Array, "n K"]
    level: Float[Array, " n"]


def performance(seconds: Any, observed: Any = None) -> Performance:
    """A performance table.

    Args:
      seconds: `[n, K]` running times, > 0 and finite where observed.
      observed: `[n, K]` booleans; None: wherever `seconds` is not NaN.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    if validation.is_traced(seconds) or validation.is_traced(observed):
        seconds = jnp.asarray(seconds)
        given: Any = ~jnp.isnan(seconds) if observed is None else jnp.asarray(observed)
        return Performance(jnp.where(given, seconds, 1.0), given)
    missing = _missing(seconds)
    known = seconds if missing is None else np.where(missing, 1.0, seconds)
    fix = "Write NaN where nothing was measured."
    times = validation.array("seconds", known, kind="real", shape=("n", "K"), fix=fix)
    if observed is None:
        given = np.ones(times.shape, bool) if missing is None else ~missing
    else:
        given = validation.array("observed", observed, kind="boolean", shape=times.shape)
    if missing is not None and (missing & given).any():
        raise ValueError("seconds must be known where observed, got NaN.")
    if ((times <= 0) & given).any():
        raise ValueError(f"seconds must be > 0 where observed, got {times[given].min():g}.")
    seconds = jnp.asarray(np.where(given, times, 1.0), jnp.float32)
    return Performance(seconds, jnp.asarray(given))


def _missing(seconds: Any) -> np.ndarray | None:
    """Where there is NaN; None where there is none, or no numbers, which the door will say."""
    try:
        found = np.isnan(np.asarray(seconds))
    except (TypeError, ValueError):
        return None
    return found if found.any() else None


def centred(table: Performance) -> Centred:
    """The table's rows, each less its mean over what was observed.

        level_n = mean_{k observed} log P_nk        z_nk = log P_nk - level_n

    What makes a task long whatever the method is in the level; only z matters for the choice. A row
    with one observation has z = 0 and says nothing about methods.

    Args:
      table: of `performance`.

    Raises:
      TypeError: no `Performance`.
    """
    check_table(table)
    observed = table.observed
    logs = jnp.where(observed, jnp.log(jnp.where(observed, table.seconds, 1.0)), 0.0)
    level = logs.sum(-1) / jnp.maximum(observed.sum(-1), 1)
    return Centred(jnp.where(observed, logs - level[..., None], 0.0), level)


def best_method(table: Performance) -> Array:
    """`[n]` the fastest observed method of each task, the lowest index among equals."""
    check_table(table)
    return jnp.argmin(jnp.where(table.observed, table.seconds, jnp.inf), axis=-1)


def check_table(value: Any) -> None:
    """Refuse what is no `Performance`."""
    validation.instance(
        "table", value, Performance, "Make one with dflax.inference.selection.performance."
    )
