"""The figures of the selection's study."""

from typing import Any

import numpy as np

from experiments.tools.figures import figure

OURS = "MLP"


def compared(found: dict[str, dict[str, np.ndarray]], title: str) -> Any:
    """Accuracy and slowdown of every selector, sorted; a bar's line reaches over the seeds."""
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
            ours = [who.startswith(OURS) for who in order]
            panel.barh(
                places,
                middle,
                xerr=around,
                color=["C0" if own else "0.7" for own in ours],
                hatch=["//" if own else "" for own in ours],
                edgecolor="white",
                error_kw={"lw": 1.2},
            )
            panel.set_xlabel(label)
            # Numbers stand inside the axis, where no bar is so long.
            for place, value in zip(places, middle, strict=True):
                panel.annotate(
                    f"{value:.3f}",
                    (1.0, place),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    ha="left",
                    fontsize=8,
                )
            panel.set_axisbelow(True)
        axes[1].set_xscale("log")
        axes[0].set_yticks(places, order, fontsize=9)
        axes[0].set_xlim(0, 1)
        canvas.suptitle(title, fontsize=10)
    return canvas
