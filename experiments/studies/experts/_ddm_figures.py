"""Figures of the study of DDM: samples as pictures, and distances by method and seed."""

from typing import Any

import numpy as np

from experiments.tasks.generation import Task
from experiments.tools.figures import figure

PICTURES = ("monolith", "k-means, full", "k-means, top-1", "k-means, distilled")
MARKERS = {"monolith": "s", "full": "o", "top-1": "^", "top-2": "v", "sample": "D"}
FASHION = ("monolith", "full", "top-1", "one expert alone")


def on_digits(task: Task, found: dict[str, np.ndarray], shown: dict[str, np.ndarray]) -> Any:
    """Samples beside data, and the distances of all methods."""
    rows = {"data": np.asarray(task.data.inputs[:10])}
    rows |= {name: shown[name] for name in (*PICTURES, "k-means, one expert alone")}
    with figure(12.0, 5.2, ncols=2, width_ratios=(1.0, 1.1)) as (canvas, axes):
        _pictures(axes[0], task, rows)
        axes[0].set_title("samples of the first seed, and digits of the data")
        names = sorted(found, key=lambda name: found[name].mean())
        for place, name in enumerate(names):
            colour = "C1" if "random" in name else "C0" if "k-means" in name else "k"
            axes[1].plot(found[name], [place] * len(found[name]), "|", color=colour, markersize=9)
            axes[1].plot(found[name].mean(), place, "o", color=colour, markersize=5)
        axes[1].set_yticks(range(len(names)), names, fontsize=8)
        axes[1].invert_yaxis()
        axes[1].set(
            xscale="log",
            xlabel="Frechet distance to the data in 16 principal components",
            title="mean (dot) and seeds (bars)",
        )
        canvas.suptitle(
            "DDM on the digits: four experts trained apart against one model of equal cost"
        )
    return canvas


def on_fashion(
    task: Task, columns: dict[Any, np.ndarray], shown: dict[int, dict[str, np.ndarray]]
) -> Any:
    """Samples at a width that is too small, and distances over the width."""
    widths = sorted(shown)
    width = widths[(len(widths) - 1) // 2]
    rows = {"data, projected": np.asarray(task.data.inputs[:10])}
    rows |= {name: shown[width][name] for name in FASHION}
    with figure(13.0, 4.6, ncols=2, width_ratios=(1.5, 1.0)) as (canvas, axes):
        _pictures(axes[0], task, rows)
        axes[0].set_title(f"samples of networks of width {width}")
        for number, (name, marker) in enumerate(MARKERS.items()):
            values = np.array([columns[w, name] for w in widths])
            places = np.arange(len(widths)) + 0.12 * (number - 2)
            axes[1].plot(places, values, "_", color=f"C{number}", markersize=7)
            axes[1].plot(
                places, values.mean(1), marker, color=f"C{number}", label=name, markersize=6
            )
        axes[1].set_xticks(range(len(widths)), [str(w) for w in widths])
        axes[1].set(
            xlabel="width of the hidden layers",
            ylabel="Frechet distance in 32 principal components",
            yscale="log",
            title="mean (symbol) and seeds (dashes)",
        )
        axes[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        canvas.suptitle(
            "DDM on Fashion-MNIST's latents: eight experts trained apart, or one model of equal cost"
        )
    return canvas


def _pictures(panel: Any, task: Task, rows: dict[str, np.ndarray]) -> None:
    """A row of pictures for each name."""
    lines = []
    for vectors in rows.values():
        made = [np.pad(task.picture(np.asarray(v)), 1, constant_values=1.0) for v in vectors]
        lines.append(np.concatenate(made, axis=1))
    panel.imshow(np.concatenate(lines), cmap="gray_r", vmin=0, vmax=1)
    height = lines[0].shape[0]
    panel.set_yticks([height * (i + 0.5) for i in range(len(rows))], list(rows), fontsize=8)
    panel.set_xticks([])
    panel.grid(False)
