"""The picture of a partition: how many examples of each class each client owns."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from dflax import validation
from dflax.data.composition import class_counts
from dflax.data.dataset import AnyArray
from dflax.data.partition import Partition

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ANNOTATED_CELLS = 200
LABELLED_CLASSES = 20


def partition_figure(
    partition: Partition,
    labels: Int[AnyArray, " N"],
    classes: int | None = None,
    ax: "Axes | None" = None,
    *,
    max_clients: int = 400,
    sort: bool = True,
) -> "Figure":
    """Classes by clients as a heat map, with the clients' sizes above and all sizes as a histogram.

    Colours grow with the square root of the count, so that rare classes stay visible; white is none.
    Of more than `max_clients` clients, that many are shown, evenly spaced in the order of the
    picture; the histogram is of all of them.

    Args:
      partition: n clients.
      labels: `[N]` class numbers.
      classes: C; default one more than the largest label.
      ax: matplotlib axes to draw into; default a new figure. The parts above and beside are its
        insets, so leave room for them.
      max_clients: largest number of columns, >= 1.
      sort: order the clients by their largest class and by its share; else by number.

    Returns:
      The whole matplotlib figure; save it with `figure.savefig(path)`.

    Raises:
      ValueError, TypeError: an argument out of range, or labels that do not fit the partition.
    """
    validation.integer("max_clients", max_clients, low=1)
    validation.flag("sort", sort)
    if ax is not None and not hasattr(ax, "inset_axes"):
        given = type(ax).__name__
        raise TypeError(f"ax must be matplotlib axes, got {given}. None makes a new figure.")
    counts = class_counts(partition, labels, classes)

    try:
        import matplotlib.pyplot as plt
        from matplotlib.colors import PowerNorm
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(
            "partition_figure needs matplotlib: pip install 'dflax[plots]'."
        ) from error

    clients, classes = counts.shape
    sizes = counts.sum(1)
    order = _by_largest_class(counts) if sort else np.arange(clients)
    shown = order[np.linspace(0, clients - 1, min(clients, max_clients)).round().astype(int)]
    columns = len(shown)
    if ax is None:
        width = float(np.clip(3.5 + 0.45 * columns, 8.0, 12.0))
        height = float(np.clip(1.6 + 0.3 * classes, 3.6, 8.0))
        ax = plt.figure(figsize=(width, height)).add_axes((0.09, 0.14, 0.62, 0.62))

    colours = plt.get_cmap("YlGnBu").with_extremes(bad="white")
    peak = max(int(counts.max()), 1)
    image = ax.imshow(
        np.ma.masked_equal(counts[shown].T, 0),
        cmap=colours,
        norm=PowerNorm(0.5, vmin=0, vmax=peak),
        aspect="auto",
        interpolation="nearest",
        origin="lower",
    )
    if columns * classes <= ANNOTATED_CELLS:
        for column, row in np.argwhere(counts[shown] > 0):
            number = counts[shown[column], row]
            ax.text(
                column,
                row,
                f"{number}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if number > 0.35 * peak else "0.2",
            )
    of = f"{clients:,} clients" if columns == clients else f"{columns} of {clients:,} clients"
    ax.set_xlabel(f"{of}, by largest class" if sort else of)
    ax.set_ylabel("class")
    ax.set_yticks(np.arange(classes) if classes <= LABELLED_CLASSES else _ticks(classes))
    ticks = np.arange(columns) if columns <= 25 else _ticks(columns)
    ax.set_xticks(ticks if columns <= 25 or not sort else [])
    ax.set_xticklabels(shown[ticks] if columns <= 25 or not sort else [])
    ax.tick_params(length=0)
    ax.spines[:].set_color("0.75")

    # The room that tick labels need does not grow with the axes.
    inch = ax.figure.dpi / ax.bbox.width
    bars = ax.inset_axes((0.0, 1.03, 1.0, 0.26), sharex=ax)
    bars.bar(np.arange(columns), sizes[shown], width=0.8 if columns <= 50 else 1.0, color="0.55")
    bars.tick_params(axis="x", labelbottom=False, length=0)
    bars.set_ylabel("size")
    bars.spines[["top", "right", "left"]].set_visible(False)
    bars.tick_params(axis="y", labelsize=8)

    legend = ax.inset_axes((1.015, 0.0, 0.02, 1.0))
    bar = ax.figure.colorbar(image, cax=legend)
    bar.outline.set_visible(False)
    legend.set_title("count", fontsize=9, loc="left")
    legend.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    legend.tick_params(labelsize=8)

    histogram = ax.inset_axes((1.0 + 1.1 * inch, 0.0, 0.22, 1.0))
    histogram.hist(sizes, bins=_bins(sizes).tolist(), orientation="horizontal", color="0.55")
    histogram.axhline(float(np.median(sizes)), color="tab:red", linewidth=1)
    histogram.set_title(f"median size {np.median(sizes):g}", fontsize=9, loc="left")
    histogram.set_xlabel("clients")
    histogram.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    histogram.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    histogram.tick_params(labelsize=8)
    histogram.spines[["top", "right"]].set_visible(False)
    return ax.figure.figure


def _by_largest_class(counts: Int[np.ndarray, "n C"]) -> Int[np.ndarray, " n"]:
    """Clients by their largest class, within it by falling share: the heat map becomes a staircase."""
    shares = counts / counts.sum(1, keepdims=True)
    return np.lexsort((-shares.max(1), shares.argmax(1)))


def _ticks(count: int) -> Int[np.ndarray, " t"]:
    """At most 11 round positions in [0, count)."""
    step = next(s for p in range(7) for s in (10**p, 2 * 10**p, 5 * 10**p) if count / s <= 11)
    return np.arange(0, count, step)


def _bins(sizes: Int[np.ndarray, " n"]) -> np.ndarray:
    """Bins of whole width, so that no integer size falls on an edge by chance."""
    low, high = int(sizes.min()), int(sizes.max())
    width = max(1, -(-(high - low + 1) // 30))
    return np.arange(low, high + width + 1, width) - 0.5
