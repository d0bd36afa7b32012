"""The figure of the study of intelligence per watt."""

from typing import Any

import numpy as np

from dflax.inference import efficiency as ipw
from experiments.studies.inference._ipw_runs import KINDS, PHONE
from experiments.tasks.digit_sizes import GENERATIONS, SIZES
from experiments.tools.figures import figure

MARKS, LINES = ("o", "s", "^"), ("-", "--", ":")
INK = ("#1b6ca8", "#c8553d", "#3c7a3c")


def overview(
    one: ipw.Efficiency, interval: ipw.Interval, routed: list[dict[str, Any]], meter: str
) -> Any:
    """Accuracy per watt over accuracy; savings and quality over a router's accuracy; its frontier."""
    with figure(13.5, 4.2, ncols=3) as (drawn, panels):
        _efficiency(panels[0], one, interval)
        _errors(panels[1], routed)
        _frontier(panels[2], routed)
    return drawn


def _efficiency(axes: Any, one: ipw.Efficiency, interval: ipw.Interval) -> None:
    sizes = list(SIZES)
    for year, generation in enumerate(GENERATIONS):
        rows = np.arange(len(sizes)) * len(GENERATIONS) + year
        x, y = np.asarray(one.accuracy)[rows, PHONE], np.asarray(one.apw)[rows, PHONE]
        low, high = (np.asarray(end)[rows, PHONE] for end in (interval.low, interval.high))
        axes.errorbar(
            x, y, yerr=[y - low, high - y], fmt=MARKS[year], linestyle=LINES[year],
            color=INK[year], capsize=2, linewidth=1, label=generation,
        )  # fmt: skip
        if year != 1:
            for name, across, up in zip(sizes, x, y, strict=True):
                axes.annotate(
                    name, (across, up), textcoords="offset points", fontsize=8,
                    xytext=(5, 4) if year == 2 else (-6, 6), ha="left" if year == 2 else "right",
                )  # fmt: skip
    axes.set(
        xlabel="accuracy on test digits",
        ylabel="accuracy per watt, 1/W",
        yscale="log",
        title="six sizes, a 15 W device by its roofline, seed 1",
    )
    axes.legend(title="generation (95 % bootstrap)", fontsize=8, title_fontsize=8)


def _errors(axes: Any, routed: list[dict[str, Any]]) -> None:
    shares = np.linspace(0, 1, 6)
    for place, kind in enumerate(KINDS):
        lines = np.array([one["draws"]["cloud"]["savings"][place].mean(-1) for one in routed])
        axes.errorbar(
            shares, lines.mean(0), yerr=[lines.mean(0) - lines.min(0), lines.max(0) - lines.mean(0)],
            fmt=MARKS[place], linestyle=LINES[place], color=INK[place], capsize=2,
            label=f"{kind} saved, errors go to the cloud",
        )  # fmt: skip
    for error, mark in (("cloud", "P"), ("flip", "X")):
        quality = np.array([one["draws"][error]["quality"].mean(-1) for one in routed]).mean(0)
        label = "to the cloud" if error == "cloud" else "flip"
        axes.plot(
            shares, quality, mark, linestyle="-.", color="0.35", label=f"quality, errors {label}"
        )
    axes.set(
        xlabel="accuracy of the router",
        ylabel="share",
        ylim=(-0.03, 1.42),
        title="oracle with errors, all seeds",
    )
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.legend(fontsize=8, loc="upper left", ncols=1)


def _frontier(axes: Any, routed: list[dict[str, Any]]) -> None:
    for seed, one in enumerate(routed):
        own = one["frontier"]
        axes.plot(
            own["savings"], own["quality"], LINES[seed % 3], marker=MARKS[seed % 3], markersize=3,
            color=INK[0], label=f"learned router, seed {seed + 1}",
        )  # fmt: skip
        ends = [0, float(one["single"]["savings"])], [1, float(one["single"]["quality"])]
        name = "best single model at random" if seed == 0 else None
        axes.plot(*ends, color=INK[1], linewidth=1, linestyle=LINES[seed % 3], label=name)
        name = "oracle" if seed == 0 else None
        best = float(one["oracle"][0]), float(one["oracle_quality"])
        axes.plot(*best, "*", color="k", markersize=10, linestyle="none", label=name)
    axes.set(
        xlabel="energy saved beside the ensemble on 700 W",
        ylabel="quality (win or tie with the ensemble)",
        ylim=(0.88, 1.005),
        title="thresholds of a learned router",
    )
    axes.legend(fontsize=8, loc="lower left")
