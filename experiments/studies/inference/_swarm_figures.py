"""Figures of the swarms' study."""

from typing import Any

import numpy as np

from experiments.tools.figures import figure

MARKS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def _curve(
    panel: Any, place: int, x: Any, runs: np.ndarray, label: str, spread: bool = True
) -> None:
    """Mean over seeds, and the range of seeds behind it."""
    color = f"C{place}"
    panel.plot(
        *(x, runs.mean(-1)),
        color=color,
        marker=MARKS[place],
        linestyle=LINES[place],
        markersize=4,
        label=label,
    )
    if spread:
        panel.fill_between(x, runs.min(-1), runs.max(-1), color=color, alpha=0.12, linewidth=0)


def tolerance(
    shares: np.ndarray, sharpness: tuple[float, ...], found: dict[str, np.ndarray], seeds: int
) -> Any:
    """Accuracy over the share of liars: by the judges' sharpness, and by rule and audits at one."""
    with figure(10.4, 4.2, ncols=2, sharey=True) as (drawn, axes):
        left, right = axes
        for place, value in enumerate(sharpness):
            _curve(left, place, shares, found["weighted"][place], f"ranking, J = {value:g}")
        _curve(left, len(sharpness), shares, found["majority"], "majority of answers", False)
        left.axvline(0.3, color="k", linewidth=0.8, linestyle=":")
        left.annotate("said of the paper", (0.305, 0.96), fontsize=8)
        left.set(
            xlabel="share of 15 nodes that lie together",
            ylabel="accuracy over 300 queries",
            ylim=(-0.02, 1.0),
            title="ranking weighted by reputation, by sharpness J of judges",
        )
        left.legend(fontsize=8, loc="lower left")
        names = (
            ("weighted, audits of 1", "every answer audited"),
            ("weighted, audits of 0.2", "a fifth audited"),
            ("weighted, no audits", "no audits"),
            ("unweighted", "unweighted"),
            ("majority", "majority of answers"),
        )
        for place, (name, label) in enumerate(names):
            _curve(right, place, shares, found[name], label)
        right.set(
            xlabel="share of 15 nodes that lie together",
            title="J = 1.2: unaudited reputation is captured near a half",
        )
        right.legend(fontsize=8, loc="lower left")
        drawn.suptitle(
            f"simulated swarms, 4 options; means and range of {seeds} seeds", fontsize=10
        )
    return drawn


def digits(
    liars: tuple[int, ...],
    found: dict[str, np.ndarray],
    stray: tuple[int, ...],
    lost: dict[str, np.ndarray],
    seeds: int,
) -> Any:
    """Accuracy over liars among classifiers, and what stray strokes cost."""
    with figure(10.4, 4.0, ncols=2) as (drawn, axes):
        left, right = axes
        for place, name in enumerate(found):
            _curve(left, place, liars, found[name], name)
        left.set(
            xlabel="liars among 15 classifiers",
            ylabel="accuracy over 300 questions",
            ylim=(-0.02, 1.0),
            title="digits, each node with 80 examples and 24 of 64 pixels",
        )
        left.legend(fontsize=8, loc="lower left")
        for place, name in enumerate(lost):
            _curve(right, place, stray, lost[name], name)
        right.axhline(0, color="k", linewidth=0.8)
        right.set(
            xlabel="pixels with strokes of another digit, of 64",
            ylabel="accuracy lost by them",
            title="questions with extraneous features, no liars",
        )
        right.legend(fontsize=8, loc="upper left")
        drawn.suptitle(f"classifiers of the digits; means and range of {seeds} seeds", fontsize=10)
    return drawn
