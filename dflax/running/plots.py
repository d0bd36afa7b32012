"""Pictures of what runs measured: curves of one run, of several, of a sweep with bands over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.running.history import History
from dflax.running.sinks import flatten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dflax.running.sweep import Sweep

# Curves in one picture, at most; so many differ in colour, dash and marker.
MOST = 16
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X<>phd8H|"
# Points of a curve, up to which each has a marker.
MARKED = 30
SENT = "bytes_sent"
# Before the name of a metric that an evaluation has, too.
METRICS = "metrics/"
LABELS = {"round": "round", "megabytes": "megabytes sent"}


class Curve(NamedTuple):
    """One line of a picture.

    Attributes:
      label: for the legend.
      x: `[P]`.
      y: `[s, P]`, one row a seed.
    """

    label: str
    x: Float[np.ndarray, " P"]
    y: Float[np.ndarray, "s P"]


def curves(
    runs: "Mapping[str, History | Sweep]",
    *names: str,
    over: str = "round",
    megabytes: float | Mapping[str, Any] | None = None,
    only: Mapping[str, float] | None = None,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draws what runs measured, a panel for each name and a line for each run.

    Of a sweep every point of its grid is a line: the mean over its seeds, with a band of one standard
    deviation over them to either side, where there are several. NaN is left out of a line. Lines
    differ in colour, dash and marker.

    Args:
      runs: histories and sweeps under the names they have in the legend.
      *names: what is drawn, evaluations or else metrics of the rounds, nested ones joined by "/";
        "metrics/loss" is the metric where there is an evaluation "loss", too. Default: all
        evaluations that are single numbers, or all such metrics where there are none.
      over: what is on the x axis: "round"; "megabytes" that were sent up to a round; or the name of a
        metric, such as "time".
      megabytes: that are sent in a round, with `over="megabytes"`: a number, an array `[T]`, or a dict
        of them by run. Default: from the metric "bytes_sent", which channels that compress have.
      only: of sweeps the points with these values: `{"rate": 0.1}`.
      ax: matplotlib axes to draw into, for one name; default a new figure.

    Returns:
      The matplotlib figure; save it with `figure.savefig(path)`.

    Raises:
      TypeError, ValueError: naming the argument; more than 16 lines.
      ImportError: matplotlib is not installed.
    """
    _verify_runs(runs)
    for place, name in enumerate(names):
        validation.text(f"names[{place}]", name)
    validation.text("over", over)
    if only is not None:
        validation.instance("only", only, Mapping, 'For example {"rate": 0.1}.')
    if megabytes is not None and over != "megabytes":
        raise ValueError(f'megabytes needs over="megabytes", got over={over!r}.')
    shown = names or _all_names(runs)
    if ax is not None and not hasattr(ax, "fill_between"):
        given = type(ax).__name__
        raise TypeError(f"ax must be matplotlib axes, got {given}. None makes a new figure.")
    if ax is not None and len(shown) != 1:
        raise ValueError(f"names must be one where ax is given, got {list(shown)}.")
    panels = [
        [
            curve
            for label, run in runs.items()
            for curve in _curves_of(label, run, name, over, _own(megabytes, label, runs), only)
        ]
        for name in shown
    ]
    if len(panels[0]) > MOST:
        raise ValueError(
            f"runs must be at most {MOST} lines, got {len(panels[0])}. Choose points of a sweep with "
            'only, for example only={"rate": 0.1}.'
        )
    return _drawn(panels, shown, LABELS.get(over, over), ax)


def _drawn(
    panels: Sequence[Sequence[Curve]], names: Sequence[str], across: str, ax: "Axes | None"
) -> "Figure":
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'dflax[plots]'.") from error
    if ax is None:
        columns = min(len(panels), 3)
        rows = math.ceil(len(panels) / columns)
        _, grid = plt.subplots(
            rows, columns, figsize=(4.8 * columns, 3.4 * rows), squeeze=False, layout="constrained"
        )
        places = list(grid.flat)
        for spare in places[len(panels) :]:
            spare.set_axis_off()
    else:
        places = [ax]
    for place, name, lines in zip(places, names, panels, strict=False):
        for number, curve in enumerate(lines):
            _draw(place, number, curve)
        place.set(xlabel=across, ylabel=name)
        place.grid(alpha=0.3)
        place.spines[["top", "right"]].set_visible(False)
        seeds = max((len(curve.y) for curve in lines), default=1)
        if any(curve.label for curve in lines):
            title = f"mean ± deviation\nover {seeds} seeds" if seeds > 1 else None
            place.legend(frameon=False, fontsize=8, title=title, title_fontsize=8)
    return places[0].figure.figure


def _draw(ax: "Axes", number: int, curve: Curve) -> None:
    """The mean over seeds of one curve, and its band."""
    there = np.isfinite(curve.y).all(0) & np.isfinite(curve.x)
    x, y = curve.x[there], curve.y[:, there]
    mean, colour = y.mean(0), f"C{number % 10}"
    ax.plot(
        x,
        mean,
        DASHES[number % len(DASHES)],
        color=colour,
        marker=MARKERS[number % len(MARKERS)],
        markevery=max(1, -(-len(x) // MARKED)),
        markersize=3.5,
        linewidth=1.3,
        label=curve.label or None,
    )
    if len(y) > 1:
        deviation = y.std(0)
        ax.fill_between(
            x, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0
        )


def _curves_of(
    label: str, run: Any, name: str, over: str, sent: Any, only: Mapping[str, float] | None
) -> list[Curve]:
    """One curve of a history; of a sweep one for each of its points."""
    if isinstance(run, History):
        rounds, values = _measured(run, name, run.rounds)
        x = _across(run, run.rounds, rounds, over, sent)
        return [Curve(label, x, values[None])]
    total = _length(run)
    every = np.arange(total) + 1
    rounds, values = _measured(run, name, every, leading=len(run.axes))
    x = _across(run, every, rounds, over, sent, leading=len(run.axes))
    swept = list(run.axes)[:-1]
    found = []
    for place in np.ndindex(*values.shape[: len(swept)]):
        here = {axis: float(run.axes[axis][i]) for axis, i in zip(swept, place, strict=True)}
        if _wanted(here, only):
            told = ", ".join(f"{axis}={value:g}" for axis, value in here.items())
            across = x if x.ndim == 1 else x[place].mean(0)
            found.append(Curve(f"{label}, {told}" if label else told, across, values[place]))
    if not found:
        raise ValueError(f"only must choose a point of {_axes(run)}, got {dict(only or {})}.")
    return found


def _measured(
    run: Any, name: str, every: np.ndarray, leading: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The rounds in which a number was measured, and the number, `[..., P]`."""
    of_rounds = name.startswith(METRICS)
    places = ((run.evaluations, run.evaluated), (run.metrics, every))
    for values, rounds in places[of_rounds:]:
        found = flatten(values).get(name.removeprefix(METRICS))
        if found is not None:
            if found.ndim != leading + 1:
                raise ValueError(
                    f"names must be of single numbers, got {name!r} with the shape "
                    f"{list(found.shape[leading + 1 :])} in every round."
                )
            return rounds, np.asarray(found, np.float64)
    known = sorted({**flatten(run.metrics), **flatten(run.evaluations)})
    raise ValueError(f"names must be of what was measured, {known}, got {name!r}.")


def _across(
    run: Any, every: np.ndarray, rounds: np.ndarray, over: str, sent: Any, leading: int = 0
) -> np.ndarray:
    """Where on the x axis some rounds lie, `[P]`, or `[..., P]` where that differs by point."""
    if over == "round":
        return np.asarray(rounds, np.float64)
    metrics = flatten(run.metrics)
    if over == "megabytes":
        if sent is not None:
            each = np.broadcast_to(np.asarray(sent, np.float64), every.shape)
        elif SENT in metrics:
            each = np.asarray(metrics[SENT], np.float64) / 1e6
        else:
            raise ValueError(
                f'over="megabytes" needs the metric "{SENT}", which only channels that compress have; '
                f"there are {sorted(metrics)}. Say megabytes=, those of a round."
            )
        total = np.cumsum(each, axis=-1)
    elif over in metrics and metrics[over].ndim == leading + 1:
        total = np.asarray(metrics[over], np.float64)
    else:
        single = sorted(name for name, leaf in metrics.items() if leaf.ndim == leading + 1)
        raise ValueError(f'over must be "round", "megabytes" or one of {single}, got {over!r}.')
    return total[..., np.searchsorted(every, rounds)]


def _wanted(here: Mapping[str, float], only: Mapping[str, float] | None) -> bool:
    for axis, value in (only or {}).items():
        if axis not in here:
            raise ValueError(f"only must name axes of the sweep, {sorted(here)}, got {axis!r}.")
        validation.real(f"only[{axis!r}]", value, scalar=True)
        if not np.isclose(here[axis], value):
            return False
    return True


def _own(megabytes: Any, label: str, runs: Mapping[str, Any]) -> Any:
    """The megabytes of one run's rounds."""
    if isinstance(megabytes, Mapping):
        if label not in megabytes:
            raise ValueError(f"megabytes must name every one of {sorted(runs)}, got no {label!r}.")
        megabytes = megabytes[label]
    if megabytes is None:
        return None
    each = validation.array("megabytes", megabytes, kind="real", low=0.0)
    rounds = len(runs[label].rounds) if isinstance(runs[label], History) else _length(runs[label])
    if each.shape not in ((), (rounds,)):
        raise ValueError(
            f"megabytes must be a number or one for each of the {rounds} rounds, got shape "
            f"{each.shape}."
        )
    return each


def _all_names(runs: Mapping[str, Any]) -> tuple[str, ...]:
    """Every single number that all runs evaluated, or else measured."""
    for values in ("evaluations", "metrics"):
        common = [
            {
                name: None
                for name, leaf in flatten(getattr(run, values)).items()
                if leaf.ndim == 1 + (0 if isinstance(run, History) else len(run.axes))
            }
            for run in runs.values()
        ]
        names = tuple(name for name in common[0] if all(name in other for other in common))
        if names:
            return names
    raise ValueError("runs must have measured a single number in common, got none.")


def _length(sweep: "Sweep") -> int:
    leaves = list(flatten(sweep.metrics).values())
    return leaves[0].shape[len(sweep.axes)] if leaves else 0


def _axes(sweep: "Sweep") -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in list(sweep.axes.items())[:-1]}


def _verify_runs(runs: Any) -> None:
    from dflax.running.sweep import Sweep

    fix = 'For example {"fedavg": history}.'
    validation.instance("runs", runs, Mapping, fix)
    if not runs:
        raise ValueError(f"runs must hold at least one run, got none. {fix}")
    for label, run in runs.items():
        validation.text("runs' names", label)
        validation.instance(f"runs[{label!r}]", run, (History, Sweep), fix)


__all__ = [
    "Curve",
    "curves",
]


def __dir__() -> list[str]:
    return __all__
