"""Paths of agents among goals, and which goals they came to."""

from typing import Any

import numpy as np

from experiments.tools.figures import figure

HATCHES = ("", "///", "...", "xxx")


def coverage(found: dict[str, dict[str, np.ndarray]], places: np.ndarray) -> Any:
    """Above, forty paths of each method's first seed; below, shares of the goals of every seed.

    Args:
      found: of each method, what `goal_policies.visited` tells.
      places: `[G, 2]`, of the goals.
    """
    goals = len(places)
    with figure(
        2.05 * len(found), 5.0, nrows=2, ncols=len(found), sharey="row", height_ratios=(1.5, 1)
    ) as (
        canvas,
        axes,
    ):
        for column, (name, own) in enumerate(found.items()):
            above, below = axes[:, column]
            for number in range(own["paths"].shape[2]):
                above.plot(*_path(own, number).T, color="C0", linewidth=0.6, alpha=0.7)
            for place, (x, y) in enumerate(places):
                above.plot(x, y, "o", color="C3", markersize=5)
                above.annotate(str(place + 1), (1.22 * x, 1.22 * y), ha="center", va="center")
            title = name.replace(", ", "\n", 1)
            above.set(xlim=(-7.3, 7.3), ylim=(-7.3, 7.3), aspect="equal", title=title)
            said = f"reached {_range(own['reached'])}\nentropy {_range(own['entropy'])}"
            above.set_xlabel(said, fontsize=9)
            seeds = len(own["shares"])
            for seed, shares in enumerate(own["shares"]):
                left = np.arange(goals) + 1 + (seed - (seeds - 1) / 2) * 0.8 / seeds
                below.bar(
                    left,
                    shares,
                    0.8 / seeds,
                    color=f"C{seed}",
                    hatch=HATCHES[seed % len(HATCHES)],
                    edgecolor="white",
                    linewidth=0.3,
                )
            below.axhline(1 / goals, color="0.4", linestyle="--", linewidth=1)
            below.set(ylim=(0, 1.02), xlabel="goal")
            below.set_xticks(np.arange(goals) + 1)
        axes[0, 0].set_ylabel("MultiGoal, 20 steps")
        axes[1, 0].set_ylabel("share of episodes\na bar a seed; dashed: even")
    return canvas


def _path(own: dict[str, np.ndarray], number: int) -> np.ndarray:
    """One episode of the first seed, up to the step before it ended."""
    path, end = own["paths"][0, :, number], own["end"][0, :, number]
    last = int(np.argmax(end)) if end.any() else len(end) - 1
    return path[: last + 1]


def _range(values: np.ndarray) -> str:
    low, high = np.min(values), np.max(values)
    return f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
