"""The figure of the calibration study."""

from typing import Any

import numpy as np

from experiments.tools.figures import figure


def calibration_figure(kept: list[dict[str, Any]], clock: str) -> Any:
    """Left: unseen calls, predicted against measured. Right: total latencies of the real runs."""
    with figure(9.6, 3.9, ncols=2) as (canvas, axes):
        calls, totals = axes
        for kind, mark, color in (("prefill", "s", "C1"), ("decode", "o", "C0")):
            seconds = 1e3 * np.concatenate([found[f"{kind} seconds"] for found in kept], axis=1)
            words = "prefill of a prompt" if kind == "prefill" else "iteration of a batch"
            calls.plot(*seconds, mark, color=color, label=words, markersize=4, alpha=0.7)
        _diagonal(calls)
        calls.set(xlabel="measured, ms", ylabel="predicted, ms", title="calls that were not fitted")
        calls.legend(fontsize=8)
        marks = ("o", "^", "x", "s", "v")
        for number, found in enumerate(kept):
            pair = (1e3 * found["total real"], 1e3 * found["total simulated"])
            words = f"run {number + 1}, {len(pair[0])} requests"
            totals.plot(*pair, marks[number % 5], label=words, markersize=4, alpha=0.7)
        _diagonal(totals)
        totals.set(
            xlabel="real run, ms",
            ylabel="simulated, ms",
            title="time from a request's arrival to its last token",
        )
        totals.legend(fontsize=8)
        time_of = "processor" if clock == "cpu" else "wall-clock"
        canvas.suptitle(
            f"a small transformer with a key-value cache, {time_of} time; dashed: equal",
            fontsize=10,
        )
    return canvas


def _diagonal(axes: Any) -> None:
    axes.set(xscale="log", yscale="log")
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], "k--", linewidth=0.8)
    axes.set(xlim=(low, high), ylim=(low, high))
