"""Samples of a meter and the queries they fell into, as one table of events."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dflax import validation
from dflax.algorithm import Events

ORDER = "Sort them by time."


class Reading(NamedTuple):
    """A row of each of n nodes: a sample of its meter, or the end of a query, or neither.

    Attributes:
      sampled: `[n]` whether there is a sample.
      time: `[n]` s, of the sample.
      power: `[n]` W, NaN where missing.
      counter: `[n]` J so far, NaN where missing.
      gauges: `[n, G]` anything else that is sampled, NaN where missing.
      ended: `[n]` whether a query has ended.
      start: `[n]` s, of the query.
      end: `[n]` s.
      accuracy: `[n]`, NaN where it was not graded.
      perplexity: `[n]`, NaN where missing.
      input_tokens: `[n]`.
      output_tokens: `[n]`.
      first_token: `[n]` s from the start, NaN where missing.
    """

    sampled: Bool[Array, " n"]
    time: Float[Array, " n"]
    power: Float[Array, " n"]
    counter: Float[Array, " n"]
    gauges: Float[Array, "n G"]
    ended: Bool[Array, " n"]
    start: Float[Array, " n"]
    end: Float[Array, " n"]
    accuracy: Float[Array, " n"]
    perplexity: Float[Array, " n"]
    input_tokens: Float[Array, " n"]
    output_tokens: Float[Array, " n"]
    first_token: Float[Array, " n"]


def telemetry(
    time: Float[np.ndarray, " S"],
    power: Float[np.ndarray, " S"],
    start: Float[np.ndarray, " K"],
    end: Float[np.ndarray, " K"],
    *,
    counter: Float[np.ndarray, " S"] | None = None,
    gauges: Float[np.ndarray, "S G"] | None = None,
    accuracy: Float[np.ndarray, " K"] | None = None,
    perplexity: Float[np.ndarray, " K"] | None = None,
    input_tokens: Float[np.ndarray, " K"] | None = None,
    output_tokens: Float[np.ndarray, " K"] | None = None,
    first_token: Float[np.ndarray, " K"] | None = None,
) -> Events:
    """One node's samples and queries in the order of time, for `streaming_profiler`.

    Times become seconds since the first of them, and the counter joules since its least valid value, in
    float64 before they are rounded to float32: differences stay what they are, and so do resets.

    Args:
      time: `[S]` s, of samples, not falling.
      power: `[S]` W; NaN where missing.
      start: `[K]` s, of queries.
      end: `[K]` s, each at or after its start, not falling.
      counter: `[S]` J, of a meter that adds up; NaN where the sample has none. What is negative or
        infinite makes the energy of its query missing. Default: no such meter.
      gauges: `[S, G]` whatever else is sampled.
      accuracy: `[K]` in [0, 1]; default not graded. A missing one is NaN, and so below.
      perplexity: `[K]` >= 1.
      input_tokens: `[K]` >= 0.
      output_tokens: `[K]` >= 0.
      first_token: `[K]` s from the start, >= 0.

    Returns:
      `Events` of `Reading`s, `[S + K]` rows of one node. A sample at a query's very end counts for it.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    samples, queries = _sorted("time", time), _sorted("end", end)
    begun = np.asarray(
        validation.array("start", start, kind="real", shape=queries.shape), np.float64
    )
    if np.any(begun > queries):
        raise ValueError(f"start must not lie after end, got {begun[begun > queries][0]:g} s.")
    watts = _column("power", power, samples.shape, low=0.0)
    total = np.full(samples.shape, np.nan)
    if counter is not None:
        total = _column("counter", counter, samples.shape, bounded=False)
        valid = np.isfinite(total) & (total >= 0)
        least = np.min(total[valid], initial=np.inf)
        # What is no counter stays negative, which the profiler knows; NaN is a sample without one.
        total = np.where(valid, total - least, np.where(np.isnan(total), np.nan, -1.0))
    others = np.zeros((samples.size, 0))
    if gauges is not None:
        width = np.shape(gauges)[-1] if np.ndim(gauges) == 2 else "G"
        others = _column("gauges", gauges, (samples.size, width), bounded=False)
    told = {
        "accuracy": (accuracy, 0.0, 1.0),
        "perplexity": (perplexity, 1.0, np.inf),
        "input_tokens": (input_tokens, 0.0, np.inf),
        "output_tokens": (output_tokens, 0.0, np.inf),
        "first_token": (first_token, 0.0, np.inf),
    }
    columns = {
        name: np.full(queries.shape, np.nan)
        if value is None
        else _column(name, value, queries.shape, low=low, high=high)
        for name, (value, low, high) in told.items()
    }
    origin = min(samples[0], begun.min())
    # A stable order with samples first: a tie goes to the sample.
    order = np.argsort(np.concatenate([samples, queries]), kind="stable")
    given = {"time": samples - origin, "power": watts, "counter": total, "gauges": others}
    asked = {"start": begun - origin, "end": queries - origin, **columns}
    rows: Any = {"sampled": order < samples.size, "ended": order >= samples.size}
    for name, column in given.items():
        rest = np.full((queries.size, *column.shape[1:]), np.nan)
        rows[name] = np.concatenate([column, rest])[order]
    for name, column in asked.items():
        rows[name] = np.concatenate([np.full(samples.size, np.nan), column])[order]
    columns_in_order: Any = [_row(rows[name]) for name in Reading._fields]
    return Events(Reading(*columns_in_order))


def fleet_telemetry(nodes: Sequence[Events]) -> Events:
    """Several nodes' tables side by side, `[T, n]`; shorter ones end in rows without anything.

    Args:
      nodes: of `telemetry`, with the same gauges.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    tables = validation.sequence("nodes", nodes, "tables of telemetry")
    for table in tables:
        of_readings = isinstance(table, Events) and isinstance(table.table, Reading)
        if not of_readings:
            raise TypeError(
                f"nodes must be tables of telemetry, got {type(table).__name__}. Make each with "
                "telemetry(...)."
            )
    longest = max(table.rows for table in tables)
    widths = {table.table.gauges.shape[-1] for table in tables}
    if len(widths) > 1:
        raise ValueError(f"nodes must have the same gauges, got {sorted(widths)} of them.")

    def padded(column: np.ndarray) -> np.ndarray:
        fill = False if column.dtype == bool else np.nan
        short = longest - column.shape[0]
        return np.pad(column, ((0, short), *((0, 0),) * (column.ndim - 1)), constant_values=fill)

    columns = zip(*(table.table for table in tables), strict=True)
    joined: Any = [
        np.concatenate([padded(np.asarray(part)) for part in column], axis=1) for column in columns
    ]
    return Events(Reading(*map(jnp.asarray, joined)))


def _row(column: np.ndarray) -> Array:
    """A column of one node."""
    narrow = column if column.dtype == bool else column.astype(np.float32)
    return jnp.asarray(narrow[:, None])


def _sorted(name: str, value: Any) -> np.ndarray:
    times = np.asarray(validation.array(name, value, kind="real", shape=("K",)), np.float64)
    if np.any(np.diff(times) < 0):
        late = int(np.argmax(np.diff(times) < 0)) + 1
        raise ValueError(f"{name} must not fall, got {times[late]:g} s at row {late}. {ORDER}")
    return times


def _column(
    name: str,
    value: Any,
    shape: tuple[int | str, ...],
    *,
    low: float = -np.inf,
    high: float = np.inf,
    bounded: bool = True,
) -> np.ndarray:
    """The numbers in float64; NaN passes for what is missing, and with `bounded=False` all else too."""
    known: Any = value
    if getattr(value, "dtype", np.dtype(object)).kind == "f":
        given = np.asarray(value)
        known = np.where(np.isnan(given) if bounded else ~np.isfinite(given), 1.0, given)
    validation.array(name, known, kind="real", shape=shape, low=low, high=high)
    return np.asarray(value, np.float64)
