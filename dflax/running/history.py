"""What a run measured: rows that gather on the host while it goes on."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, PyTree

from dflax.mesh import collect


class History(NamedTuple):
    """What a run measured, as NumPy arrays on the host.

    A metric of a round in which no client reported is NaN where it is a mean over clients: `dx.run`
    records what the algorithm says. TensorBoard curves leave such points out, JSON lines have null;
    use `np.nanmean` over rounds.

    Attributes:
      rounds: `[T]` the rounds done, counted from 1.
      metrics: the algorithm's metrics, leaves `[T, ...]`.
      evaluated: `[E]` the rounds after which the state was evaluated.
      evaluations: the evaluation's metrics, leaves `[E, ...]`; empty without one.
      seconds: time spent in rounds and evaluations, compilation excluded.
      compile_seconds: time spent tracing and compiling.
    """

    rounds: Int[np.ndarray, " T"]
    metrics: PyTree[np.ndarray]
    evaluated: Int[np.ndarray, " E"]
    evaluations: PyTree[np.ndarray]
    seconds: float
    compile_seconds: float

    @property
    def rounds_per_second(self) -> float:
        """Rounds per second, compilation excluded, evaluations included."""
        return len(self.rounds) / max(self.seconds, 1e-9)

    def at(self, name: str) -> np.ndarray:
        """A metric after each evaluated round, `[E, ...]`, such as "time" to plot evaluations over.

        Raises:
          ValueError: no such metric.
        """
        known = self.metrics if isinstance(self.metrics, dict) else {}
        if name not in known:
            raise ValueError(f"name must be one of the metrics {sorted(known)}, got {name!r}.")
        return known[name][np.searchsorted(self.rounds, self.evaluated)]


class Rows(NamedTuple):
    """Numbered rows: of rounds with their metrics, or of evaluated rounds with their evaluations.

    Attributes:
      numbers: `[T]` int64, rounds counted from 1.
      values: leaves `[T, ...]`.
    """

    numbers: Int[np.ndarray, " T"]
    values: PyTree[np.ndarray]


def row(values: PyTree[jax.ShapeDtypeStruct]) -> Rows:
    """Shapes and types of one row."""
    return Rows(jax.ShapeDtypeStruct((), np.int64), values)  # type: ignore[arg-type]


def taken(numbers: np.ndarray, buffers: PyTree[Any]) -> Rows:
    """The first rows of a call's buffers, copied: a view would keep the whole buffer alive."""
    values = jax.tree.map(lambda leaf: np.array(leaf[: len(numbers)]), collect(buffers))
    return Rows(numbers.astype(np.int64), values)


def joined(rows: list[Rows]) -> Rows:
    """One after the other."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def for_sinks(rows: Rows, evaluations: Rows, evaluated: bool) -> Any:
    """Metrics and, under "evaluation", evaluations that are NaN where there was none."""
    if not evaluated:
        return rows.values
    places = np.searchsorted(rows.numbers, evaluations.numbers)

    def spread(leaf: np.ndarray) -> np.ndarray:
        wide = np.full((len(rows.numbers), *leaf.shape[1:]), np.nan)
        wide[places] = leaf
        return wide

    return {**rows.values, "evaluation": jax.tree.map(spread, evaluations.values)}
