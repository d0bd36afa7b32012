"""The studies' figures: their common look, curves and bars that need no colour, what one lacks."""

import contextlib
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d", "8")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "ooo", "+++", "|||")
# How far apart the marks of a curve are, as a share of the panel's diagonal.
APART = 0.16


class Look(NamedTuple):
    """How one curve or bar is told from the others, with colours and without.

    Attributes:
      color: matplotlib's.
      line: the style of its line.
      marker: its mark.
      hatch: of its bars.
      place: among those that are drawn together; shifts marks along the curve, so that curves which lie
        on each other show all their marks.
    """

    color: str
    line: Any
    marker: str
    hatch: str
    place: int


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, no two alike in marks, and in lines for the first seven."""
    return {
        name: Look(
            f"C{place % 10}",
            LINES[place % len(LINES)],
            MARKERS[place % len(MARKERS)],
            HATCHES[place % len(HATCHES)],
            place,
        )
        for place, name in enumerate(names)
    }


@contextlib.contextmanager
def figure(width: float = 6.4, height: float = 4.0, **options: Any) -> Iterator[tuple[Any, Any]]:
    """A matplotlib figure and its axes in the studies' common look, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    look: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        # Long enough for a dash and the mark on it.
        "legend.handlelength": 3.0,
        "font.size": 10,
    }
    with plt.rc_context(look):
        drawn, axes = plt.subplots(figsize=(width, height), layout="constrained", **options)
        yield drawn, axes


def curve(
    panel: Any,
    xs: Float[np.ndarray, " T"],
    values: Float[np.ndarray, "S T"],
    look: Look,
    label: str | None = None,
    *,
    band: Float[np.ndarray, "2 T"] | None = None,
    **options: Any,
) -> None:
    """The mean over seeds as a line with marks, and a band from the least to the largest.

    A later curve is a little thinner, so that one which lies below it is seen at its sides.

    Args:
      panel: the axes.
      xs: where the values were taken.
      values: of each seed.
      look: of `looks`.
      label: in the legend.
      band: its lower and upper edge, in place of the least and the largest.
      **options: for `axes.plot`, in place of the look's.
    """
    lower, upper = (values.min(0), values.max(0)) if band is None else band
    own: dict[str, Any] = {
        "color": look.color,
        "linestyle": look.line,
        "marker": look.marker,
        "markersize": 4.5,
        "markevery": (APART * (look.place * 0.37 % 1.0), APART),
        "linewidth": max(2.2 - 0.15 * look.place, 1.2),
        "label": label,
    }
    panel.plot(xs, values.mean(0), **(own | options))
    if len(values) > 1 or band is not None:
        panel.fill_between(xs, lower, upper, color=look.color, alpha=0.1, linewidth=0)


def bars(
    panel: Any,
    at: Float[np.ndarray, " G"],
    values: Float[np.ndarray, "S G"],
    look: Look,
    width: float,
    label: str | None = None,
) -> None:
    """Hatched bars of the mean over seeds, with a line from the least to the largest.

    Args:
      panel: the axes.
      at: the middle of each bar.
      values: of each seed.
      look: of `looks`.
      width: of a bar.
      label: in the legend.
    """
    middle = values.mean(0)
    spread = np.maximum(np.stack([middle - values.min(0), values.max(0) - middle]), 0.0)
    panel.bar(
        at,
        middle,
        width,
        yerr=spread if len(values) > 1 else None,
        capsize=2,
        color=look.color,
        hatch=look.hatch,
        edgecolor="white",
        linewidth=0.5,
        label=label,
    )


def head(drawn: Any, line: str) -> None:
    """Writes a line above a figure that has none, folded to its width."""
    if not drawn.get_suptitle():
        width = int(14 * drawn.get_size_inches()[0])
        drawn.suptitle(textwrap.fill(line, width), fontsize=10)


def lacks(drawn: Any) -> list[str]:
    """What keeps a figure from being read alone, in words; empty if nothing does.

    In every panel two curves, or two rows of bars, that the legend names must differ in more than their
    colour. Both axes must have a label or words for ticks, or another panel of the row or column.
    """
    said = []
    for place, panel in enumerate(drawn.axes, 1):
        alike: dict[Any, list[str]] = {}
        for label, look in _looks_in(panel):
            alike.setdefault(look, []).append(label)
        said += [
            f"panel {place}: {', '.join(names)} differ in their colour alone"
            for names in alike.values()
            if len(set(names)) > 1
        ]
        if not panel.axison or panel.images or not panel.has_data():
            continue
        for which in "xy":
            siblings = getattr(panel, f"get_shared_{which}_axes")().get_siblings(panel)
            beside = [one for one in drawn.axes if _in_line(panel, one, which)]
            if not any(_named(one, which) for one in (*siblings, *beside)):
                said.append(f"panel {place}: the {which} axis has no label")
    return said


def _in_line(panel: Any, other: Any, which: str) -> bool:
    """Whether the other stands in the same row, for y axes, or in the same column, for x axes."""
    own, its = panel.get_subplotspec(), other.get_subplotspec()
    if own is None or its is None:
        return False
    span = "rowspan" if which == "y" else "colspan"
    return getattr(own, span) == getattr(its, span)


def _looks_in(panel: Any) -> Iterator[tuple[str, Any]]:
    """The label and the colourless look of every curve and row of bars that a legend names."""
    for line in panel.lines:
        if not line.get_label().startswith("_"):
            yield line.get_label(), _of_line(line)
    for group in panel.containers:
        label = group.get_label()
        if label.startswith("_"):
            continue
        if hasattr(group, "has_yerr"):
            if group.lines[0] is not None:
                yield label, _of_line(group.lines[0])
        elif group.patches:
            # Bars beside each other are also told by their order; hatches say it in the legend.
            yield label, ("bars", group.patches[0].get_hatch() or "")


def _of_line(line: Any) -> Any:
    marker = str(line.get_marker())
    hollow = marker not in ("None", "") and str(line.get_markerfacecolor()) in ("white", "none")
    return (str(line._unscaled_dash_pattern), line.get_linestyle(), marker, hollow)


def _named(panel: Any, which: str) -> bool:
    """Whether an axis has a label, words for ticks, no ticks at all, or a title that says it."""
    axis = getattr(panel, f"{which}axis")
    if axis.get_label_text() or not axis.get_visible():
        return True
    if len(axis.get_majorticklocs()) == 0:
        return True
    ticks = [tick.get_text() for tick in axis.get_ticklabels()]
    return any(letter.isalpha() for text in ticks for letter in text if "mathdefault" not in text)


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
