"""The figures of PDPPO's study."""

from typing import Any

import numpy as np

from experiments.tools.figures import figure

LOOKS = {
    "PPO": ("C3", "--"),
    "PDPPO": ("C0", "-"),
    "one critic": ("C1", ":"),
    "noiseless": ("C2", "-."),
}


def _smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Means of a few rounds, `[rounds, ...]`."""
    width = min(width, len(values))
    return np.lib.stride_tricks.sliding_window_view(values, width, axis=0).mean(-1)


def curves_figure(
    window: int,
    title: str,
    found: dict[str, dict[str, dict[str, np.ndarray]]],
    best: dict[str, np.ndarray],
) -> Any:
    """Episode rewards over steps, a panel for each way of training, with the bound."""
    with figure(10.0, 4.0, ncols=2, sharey=True) as (canvas, axes):
        for panel, (trunk, methods) in zip(axes, found.items(), strict=False):
            for name, own in methods.items():
                values = _smooth(own["episode_return"])
                steps = window * (1 + np.arange(len(own["episode_return"]))[-len(values) :])
                middle = values.mean(1)
                error = values.std(1) / np.sqrt(values.shape[1])
                color, style = LOOKS[name]
                panel.plot(steps, middle, style, color=color, label=name)
                panel.fill_between(steps, middle - error, middle + error, color=color, alpha=0.2)
            for name, words in (("bound", "perfect information (bound)"), ("idle", "idle")):
                height = best[name].mean()
                panel.axhline(height, color="k", linewidth=0.8, linestyle=(0, (1, 1)))
                panel.annotate(
                    words,
                    (0.98, height),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="right",
                    fontsize=8,
                )
            panel.set(title=trunk, xlabel="steps")
        axes[0].set_ylabel("episode reward")
        axes[0].legend(fontsize=8, loc="center left", bbox_to_anchor=(0.0, 0.65))
        canvas.suptitle(title, fontsize=10)
    return canvas


def federation_figure(window: int, title: str, found: dict[str, np.ndarray]) -> Any:
    """Episode rewards over steps, mean of agents, a line for each repeat."""
    styles = {"alone": ("C3", "--"), "FedAvg": ("C0", "-"), "gossip on a ring": ("C2", "-.")}
    with figure(5.6, 3.8) as (canvas, axes):
        for name, values in found.items():
            color, style = styles[name]
            smooth = _smooth(values.T)
            steps = window * (1 + np.arange(values.shape[1])[-len(smooth) :])
            axes.plot(steps, smooth, style, color=color, alpha=0.3, linewidth=0.8)
            axes.plot(steps, smooth.mean(1), style, color=color, label=name)
        axes.set(xlabel="steps of each agent", ylabel="episode reward, mean of agents")
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=8)
    return canvas
