"""What a run measured: rows that gather on the host while it goes on."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, PyTree

from dflax.algorithm import State
from dflax.mesh import collect

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Best(NamedTuple):
    """The best state of a run, see `keep_best` of `dx.run`.

    Attributes:
      round: after which it was, counted from 1.
      value: of the objective there.
      state: a copy, on the devices of the run.
    """

    round: int
    value: float
    state: State


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
      stopped: why the run ended before the rounds that were asked for; None where no rule ended it.
      best: the best state, where `keep_best` asked for it and any value was a number.
    """

    rounds: Int[np.ndarray, " T"]
    metrics: PyTree[np.ndarray]
    evaluated: Int[np.ndarray, " E"]
    evaluations: PyTree[np.ndarray]
    seconds: float
    compile_seconds: float
    stopped: str | None = None
    best: Best | None = None

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

    def plot(self, *names: str, **options: Any) -> "Figure":
        """Draws what was measured over the rounds, a panel for each name; see `dflax.plots.curves`.

        Args:
          *names: of evaluations or metrics; default: all evaluations that are single numbers, or all
            such metrics where there are none.
          **options: of `dflax.plots.curves`: `over`, `megabytes`, `ax`.

        Returns:
          The matplotlib figure.

        Raises:
          TypeError, ValueError: naming the argument.
          ImportError: matplotlib is not installed.
        """
        from dflax.running.plots import curves

        return curves({"": self}, *names, **options)


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
