"""Timetables: when a server steps, whose changes it applies, and from which models those were made."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dflax import validation

COUNT, REAL = (int, np.integer), (int, float, np.integer, np.floating)


class Arrival(NamedTuple):
    """One client's part in a step of the server.

    Attributes:
      client: its number in [0, n).
      version: how many steps the server had taken when it sent the model that the client starts from.
      steps: local steps, >= 1; 0 for a change that the client made and kept before.
      weight: what the server multiplies the change with.
      later: the change is made now and kept; a later arrival of no steps brings it.
      busy: seconds that the client worked for it.
    """

    client: int
    version: int
    steps: int
    weight: float
    later: bool = False
    busy: float = 0.0


class Timetable(NamedTuple):
    """All steps of a server in their order, as arrays of the host; `collected` makes one of arrivals.

    Nothing in it depends on models or data, so that one table serves every seed and every rate.

    Attributes:
      population: n, how many clients there are.
      time: `[T]` seconds at which the server steps, nowhere falling.
      first: `[T + 1]` where each step's arrivals begin in the columns below, and the end of the last.
      clients: `[A]` who arrives.
      versions: `[A]` from which model, see `Arrival`.
      steps: `[A]` local steps; 0 where a kept change is brought.
      weights: `[A]` of the changes.
      later: `[A]` whether the change is kept for later.
      busy: `[A]` seconds of work.
    """

    population: int
    time: Float[np.ndarray, " T"]
    first: Int[np.ndarray, " T+1"]
    clients: Int[np.ndarray, " A"]
    versions: Int[np.ndarray, " A"]
    steps: Int[np.ndarray, " A"]
    weights: Float[np.ndarray, " A"]
    later: Bool[np.ndarray, " A"]
    busy: Float[np.ndarray, " A"]

    @property
    def of_step(self) -> Int[np.ndarray, " A"]:
        """The number of the server's step that each arrival belongs to."""
        return np.repeat(np.arange(len(self.time)), np.diff(self.first))

    @property
    def moves(self) -> Bool[np.ndarray, " T"]:
        """Which steps may move the server: all but those in which changes are only kept for later."""
        kept = np.bincount(self.of_step, self.later, len(self.time))
        arrived = np.diff(self.first)
        return (kept < arrived) | (arrived == 0)

    @property
    def staleness(self) -> Int[np.ndarray, " A"]:
        """How often the server moved between sending a model and applying what came of it."""
        moved = np.cumsum(np.r_[0, self.moves])
        return moved[self.of_step] - moved[self.versions]

    @property
    def applied(self) -> Bool[np.ndarray, " A"]:
        """Which arrivals the server applies; the others are kept."""
        return ~self.later

    @property
    def keeps(self) -> bool:
        """Whether any change is kept for later."""
        return bool(self.later.any())

    def frequencies(self) -> Float[np.ndarray, " n"]:
        """The share of the server's steps to which each client contributes."""
        applied = self.clients[self.applied]
        return np.bincount(applied, minlength=self.population) / self.moves.sum()

    def surrogate(self) -> Float[np.ndarray, " n"]:
        """The clients' weights in the loss that is minimised, summing to 1: their shares of all steps.

        Where they differ from the importances, the method has another optimum than the federation.
        """
        applied = self.applied
        total = np.bincount(self.clients[applied], self.weights[applied], minlength=self.population)
        return total / total.sum()

    def idle(self) -> float:
        """The share of the clients' time until the last step in which they wait."""
        return float(1.0 - self.busy.sum() / (self.population * self.time[-1]))

    def measures(self) -> dict[str, float]:
        """Steps, contributors a step, staleness, idle share and local steps, for a table of methods."""
        stale, counted = self.staleness[self.applied], max(1, int(self.applied.sum()))
        return {
            "server_steps": float(self.moves.sum()),
            "contributors": counted / float(self.moves.sum()),
            "staleness": float(stale.sum() / counted),
            "largest_staleness": float(stale.max(initial=0)),
            "idle": self.idle(),
            "local_steps": float(self.steps.sum()),
        }


def collected(population: int, steps: Iterable[tuple[float, Sequence[Arrival]]]) -> Timetable:
    """A timetable of `(time, arrivals)` of every step of the server, the earliest first.

    Args:
      population: n, how many clients there are.
      steps: a step may have no arrivals; then the server stays where it is.

    Raises:
      TypeError, ValueError: no steps, a time that falls, a client twice in a step or outside of
        [0, n), a version that the server does not have yet, negative steps, weights that are not
        finite, or a kept change that was never made; with the number of the step.
    """
    validation.integer("population", population, low=1)
    given = [_as_step(step) for step in _as_steps(steps)]
    if not given:
        raise ValueError(
            "steps must be at least one step of the server, got none. Run for longer: raise horizon."
        )
    time = np.array([at for at, _ in given])
    _require_rising(time)
    kept: set[int] = set()
    for number, (_, arrivals) in enumerate(given):
        _require(population, number, arrivals, kept)
    flat = [arrival for _, arrivals in given for arrival in arrivals]
    columns = tuple(zip(*flat, strict=True)) or ((),) * len(Arrival._fields)
    kinds = (np.int32, np.int32, np.int32, np.float64, bool, np.float64)
    clients, versions, local, weights, later, busy = (
        np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)
    )
    first = np.cumsum([0] + [len(arrivals) for _, arrivals in given])
    return Timetable(population, time, first, clients, versions, local, weights, later, busy)


def _as_steps(steps: Any) -> Iterable[Any]:
    words = isinstance(steps, (str, bytes, dict))
    if words or not isinstance(steps, Iterable) or getattr(steps, "shape", None) == ():
        raise TypeError(
            f"steps must be (time, arrivals) of each step of the server, got {validation.shown(steps)}."
        )
    return steps


def _as_step(step: Any) -> tuple[float, tuple[Any, ...]]:
    if not (isinstance(step, tuple) and len(step) == 2 and isinstance(step[1], (list, tuple))):
        raise TypeError(
            "steps must be tuples of a time and a list of arrivals, got "
            f"{validation.shown(step)} among them."
        )
    if not isinstance(step[0], REAL) or isinstance(step[0], bool):
        raise TypeError(f"steps must have times in seconds, got {validation.shown(step[0])}.")
    return float(step[0]), tuple(step[1])


def _require_rising(time: np.ndarray) -> None:
    falls = np.flatnonzero(~(np.diff(time, prepend=0.0) >= 0))
    if falls.size or not np.isfinite(time).all():
        number = int(falls[0]) if falls.size else int(np.flatnonzero(~np.isfinite(time))[0])
        raise ValueError(
            f"steps must come in the order of their times, finite and >= 0, got {time[number]} for "
            f"step {number}. Sort them."
        )


def _require(population: int, number: int, arrivals: Sequence[Any], kept: set[int]) -> None:
    """Refuses a step that cannot be; updates who keeps a change."""
    for arrival in arrivals:
        validation.instance(f"an arrival of step {number}", arrival, Arrival)
        counts = arrival.client, arrival.version, arrival.steps
        reals = arrival.weight, arrival.busy
        if not (
            all(isinstance(c, COUNT) for c in counts) and all(isinstance(r, REAL) for r in reals)
        ):
            raise TypeError(
                f"an arrival of step {number} must have whole numbers of client, version and steps, and "
                f"real ones of weight and busy, got {validation.shown(arrival)}."
            )
        if not 0 <= arrival.client < population:
            raise ValueError(
                f"the clients of step {number} must be numbers in [0, {population}), got "
                f"{arrival.client}."
            )
        if not 0 <= arrival.version <= number:
            raise ValueError(
                f"step {number} names client {arrival.client} before it was sent its model: versions "
                f"must be in [0, {number}], the steps taken so far, got {arrival.version}."
            )
        if arrival.steps < 0 or not (
            math.isfinite(arrival.weight) and 0 <= arrival.busy < math.inf
        ):
            raise ValueError(
                f"step {number} must have local steps >= 0, finite weights and busy >= 0, got {arrival}."
            )
        if not arrival.steps and arrival.client not in kept:
            raise ValueError(
                f"step {number} brings a change of client {arrival.client} that it never kept. Give "
                "it local steps >= 1, or an earlier arrival with later=True."
            )
        if arrival.later:
            kept.add(arrival.client)
    names = [arrival.client for arrival in arrivals]
    if len(set(names)) < len(names):
        raise ValueError(f"the clients of step {number} must be distinct, got {sorted(names)}.")
