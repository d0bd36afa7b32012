"""The figures of the selection's study."""

from typing import Any

import numpy as np

from experiments.tools.figures import figure

OURS = "MLP"


def compared(found: dict[str, dict[str, np.ndarray]], title: str) -> Any:
    """Accuracy and slowdown of every selector, sorted; a line reaches over the seeds."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    order = sorted(found, key=lambda name: -found[name]["slowdown"].mean())
    places = np.arange(len(order))
    with figure(10.0, 0.27 * len(order) + 1.4, ncols=2, sharey=True) as (canvas, axes):
        panels = (
            ("accuracy", "share of tasks whose fastest method is chosen", 0.0),
            ("slowdown", "mean of time / least time - 1 (log scale)", 1.0),
        )
        for panel, (name, label, base) in zip(axes, panels, strict=True):
            values = np.stack([found[who][name] - base for who in order])
            middle = values.mean(1)
            around = np.abs(np.stack([values.min(1), values.max(1)]) - middle)
            for place, who in zip(places, order, strict=True):
                ours = who.startswith(OURS)
                if who == "oracle" and base:
                    # No time is lost, which a logarithmic axis does not have.
                    continue
                panel.errorbar(
                    middle[place],
                    place,
                    xerr=around[:, place : place + 1],
                    fmt="s" if ours else "o",
                    color="C0" if ours else "0.3",
                    markerfacecolor="C0" if ours else "white",
                    markersize=6,
                    capsize=2,
                )
            panel.set_xlabel(label)
            for place, value in zip(places, middle, strict=True):
                panel.annotate(
                    f"{value:.3f}",
                    (1.01, place),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    ha="left",
                    fontsize=8,
                )
        axes[1].set_xscale("log")
        axes[1].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes[1].xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes[1].xaxis.set_minor_formatter(NullFormatter())
        axes[0].set_yticks(places, order, fontsize=9)
        axes[0].set_xlim(0, 1.02)
        canvas.suptitle(title, fontsize=10)
    return canvas
