"""The figures of the study of MoDeST."""

from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.tasks.modest_runs import Found
from experiments.tools.figures import LINES, curve, figure, looks

Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def cost_figure(curves: Curves) -> Any:
    """Accuracy over rounds and over megabytes sent."""
    with figure(9.2, 4.4, ncols=2, sharey=True) as (drawn, axes):
        for name, look in looks(curves).items():
            accuracy, megabytes = curves[name]
            band = accuracy.mean(0) - accuracy.std(0), accuracy.mean(0) + accuracy.std(0)
            rounds = np.arange(1, accuracy.shape[1] + 1)
            for panel, xs in zip(axes, (rounds, megabytes.mean(0)), strict=True):
                curve(panel, xs, accuracy, look, name, band=np.stack(band))
        axes[0].set(xlabel="round", ylabel="test accuracy", ylim=(0.5, 1.0))
        axes[1].set(xlabel="megabytes sent so far, views and pings counted")
        axes[1].set(xscale="log", xlim=(1.0, None))
        handles = axes[0].get_legend_handles_labels()
        drawn.legend(*handles, loc="outside lower center", ncols=3, fontsize=8)
    return drawn


def silence_figure(crash: dict[str, Found], pings: dict[str, dict[str, Found]], nodes: int) -> Any:
    """Accuracy and failed pings while nodes fall silent; failed pings where most never were there."""
    with figure(11.0, 3.6, ncols=3) as (drawn, axes):
        for place, (delta, found) in enumerate(crash.items()):
            label, color = f"delta = {delta}".replace("inf", "∞"), f"C{place}"
            line = LINES[place % len(LINES)]
            accuracy = found["test_accuracy"]
            rounds = np.arange(1, accuracy.shape[1] + 1)
            _band(axes[0], rounds, accuracy, color=color, ls=line, label=label)
            for panel, runs in zip(axes[1:], pings.values(), strict=True):
                # Pings of single rounds are noisy: means over five.
                failed = runs[delta]["failed_pings"]
                failed = failed[:, : failed.shape[1] // 5 * 5]
                failed = failed.reshape(len(failed), -1, 5).mean(2)
                every = 5 * np.arange(failed.shape[1]) + 3
                _band(panel, every, failed, color=color, ls=line, label=label)
        live = nodes // 5
        axes[0].set(ylabel="test accuracy", ylim=(0.6, 1.0), title=f"{nodes - live} fall silent")
        axes[1].set(ylabel="failed pings per sample", title=f"{nodes - live} fall silent")
        axes[2].set(ylabel="failed pings per sample", title=f"{live} of {nodes} ever on line")
        axes[2].sharey(axes[1])
        for panel in axes:
            panel.set_xlabel("round")
        for panel in axes[:2]:
            panel.axvspan(50, 145, color="grey", alpha=0.1, lw=0)
        axes[0].legend(fontsize=8, loc="lower right")
    return drawn


def spread_figure(there: dict[str, Found], known: Float[np.ndarray, "S T j"], nodes: int) -> Any:
    """How views shrink by ageing while everyone is there, and how news of a newcomer spreads."""
    with figure(8.2, 3.5, ncols=2) as (drawn, axes):
        for place, (delta, found) in enumerate(there.items()):
            sizes = found["view_size"]
            label = f"delta = {delta}".replace("inf", "∞")
            rounds = np.arange(1, sizes.shape[1] + 1)
            look = {"color": f"C{place}", "ls": LINES[place % len(LINES)]}
            _band(axes[0], rounds, sizes, label=label, **look)
        axes[0].set(xlabel="round", ylabel="nodes in the aggregator's view", ylim=(0, nodes + 4))
        axes[0].legend(fontsize=8, loc="lower left")
        rounds = np.arange(known.shape[1])
        each = known.transpose(1, 0, 2).reshape(len(rounds), -1)
        axes[1].plot(rounds, each, color="C0", alpha=0.15, lw=0.8)
        axes[1].plot(rounds, each.mean(1), color="C0", lw=2.0)
        axes[1].set(
            xlabel="rounds since a node joined",
            ylabel="share of the first nodes that know it",
            ylim=(0.0, 1.04),
        )
    return drawn


def _band(panel: Any, x: np.ndarray, values: np.ndarray, *, color: str, **options: Any) -> None:
    """Mean over seeds with one standard deviation either way."""
    mean, spread = values.mean(0), values.std(0)
    panel.plot(x, mean, color=color, **options)
    panel.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.15, lw=0)
