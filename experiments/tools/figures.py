"""The studies' figures: their common look, and axes of megabytes."""

import contextlib
from collections.abc import Iterator
from typing import Any


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
        "font.size": 10,
    }
    with plt.rc_context(look):
        drawn, axes = plt.subplots(figsize=(width, height), layout="constrained", **options)
        yield drawn, axes


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
