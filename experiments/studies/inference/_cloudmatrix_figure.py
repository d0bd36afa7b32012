"""The figure of the CloudMatrix study."""

from typing import Any

import numpy as np

from dflax.inference import supernode as sn
from experiments.tasks.quantised_digits import WAYS
from experiments.tools.figures import figure

STYLES = {"peer": ("C0", "-", "o"), "kv_centric": ("C1", "--", "s"), "local_only": ("C2", ":", "^")}
NAMES = {
    "peer": "peer: pooled cache",
    "kv_centric": "where the cache is, fetch",
    "local_only": "where the cache is, no fetch",
}


def cloudmatrix_figure(
    loads: tuple[float, ...],
    tails: dict[str, np.ndarray],
    spares: tuple[int, ...],
    replicas: dict[str, np.ndarray],
    accuracy: dict[str, dict[str, np.ndarray]],
) -> Any:
    """Four panels: the frontier, tails of TTFT, replicas, and INT8.

    Args:
      loads: of the tails.
      tails: `[loads, seeds]` p99 of TTFT of each policy, seconds.
      spares: of the replicas.
      replicas: `[spares, seeds]` lambda, on the "same" tokens and on "fresh" ones.
      accuracy: by network and way.
    """
    with figure(10.5, 7.4, nrows=2, ncols=2) as (drawn, axes):
        _frontier(axes[0, 0])
        _tails(axes[0, 1], loads, tails)
        _replicas(axes[1, 0], spares, replicas)
        _accuracy(axes[1, 1], accuracy)
    return drawn


def _frontier(axes: Any) -> None:
    points, batches = sn.published_points(), np.arange(4.0, 161.0)
    for context, line, marker in ((1536.0, "-", "o"), (2176.0, "--", "s"), (4224.0, ":", "^")):
        tpot = np.asarray(
            sn.time_per_token(sn.cloudmatrix_costs(), batches, context, sn.speculation())
        )
        axes.plot(1e3 * tpot, batches / tpot, line, color="0.3", label=f"model, {context:g} tokens")
        at = points.context == context
        axes.plot(1e3 * points.tpot[at], points.throughput[at], marker, color="C3", mfc="none")
    axes.plot([], [], "o", color="C3", mfc="none", label="paper, same contexts (o, s, ^)")
    axes.set(
        xlabel="time per output token, ms",
        ylabel="tokens/s of an NPU",
        title="decoding: latency against throughput",
    )
    axes.legend(fontsize=8)


def _tails(axes: Any, loads: tuple[float, ...], tails: dict[str, np.ndarray]) -> None:
    for name, values in tails.items():
        color, line, marker = STYLES[name]
        axes.plot(loads, values.mean(1), line, color=color, marker=marker, label=NAMES[name])
        axes.fill_between(loads, values.min(1), values.max(1), color=color, alpha=0.2)
    axes.set(
        xlabel="load, of what peer serving can do",
        ylabel="p99 of TTFT, s",
        yscale="log",
        title="simulated: 90 % of prompts shared, a quarter\n"
        "of the prefixes fits one instance (range of seeds)",
    )
    axes.legend(fontsize=8)


def _replicas(axes: Any, spares: tuple[int, ...], replicas: dict[str, np.ndarray]) -> None:
    for name, line, marker in (("same", "-", "o"), ("fresh", "--", "s")):
        label = {"same": "on the tokens counted", "fresh": "on fresh tokens"}[name]
        axes.plot(spares, replicas[name].mean(1), line, marker=marker, color="C0", label=label)
    axes.axhline(1.0, color="0.5", lw=0.8)
    axes.set(
        xlabel="spare slots for replicas",
        ylabel="busiest slot over mean slot",
        ylim=(0.9, None),
        title="simulated: 256 experts, top 8, Zipf(1) popularity",
    )
    axes.legend(fontsize=8)


def _accuracy(axes: Any, accuracy: dict[str, dict[str, np.ndarray]]) -> None:
    ways, width = ("float32", *list(WAYS)[:2]), 0.26
    for place, (way, hatch, color) in enumerate(
        zip(ways, ("", "//", ".."), ("0.6", "C1", "C0"), strict=True)
    ):
        values = [100 * (1 - own[way]) for own in accuracy.values()]
        at = np.arange(len(values)) + (place - 1) * width
        label = "float32" if way == "float32" else f"W8A8, {way}"
        means = [v.mean() for v in values]
        spread = [[m - v.min() for m, v in zip(means, values, strict=True)]]
        spread.append([v.max() - m for m, v in zip(means, values, strict=True)])
        axes.bar(at, means, width, yerr=spread, label=label, hatch=hatch, color=color, capsize=2)
    names = [name.replace(", outliers ", "\noutliers\n") for name in accuracy]
    axes.set_xticks(np.arange(len(names)), names)
    axes.set(ylabel="test error, %", title="digits (scikit-learn), trained here: INT8 products")
    axes.legend(fontsize=8)
