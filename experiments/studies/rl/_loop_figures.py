"""Figures of LOOP's study."""

from typing import Any

import numpy as np

from experiments.tasks.denoisers import CENTRES, MODES
from experiments.tools.figures import figure

STYLES = {
    "REINFORCE": ("0.6", ":"),
    "REINFORCE+BC": ("0.6", "--"),
    "RLOO, K = 4": ("C2", "-."),
    "PPO, statistics of the batch": ("C1", "-"),
    "PPO, statistics per prompt": ("C1", "--"),
    "LOOP, K = 2": ("C0", ":"),
    "LOOP, K = 4": ("C0", "-"),
    "LOOP, K = 8": ("C0", "--"),
}


def ring(curves: dict[str, dict[str, np.ndarray]], before: np.ndarray, after: np.ndarray) -> Any:
    """Curves with offsets and without; samples of each prompt before and after."""
    with figure(11.5, 6.6, nrows=2, ncols=2, width_ratios=(1.5, 1)) as (canvas, axes):
        for panel, (table, rows) in zip(axes[:, 0], curves.items(), strict=True):
            for name, values in rows.items():
                color, line = STYLES[name]
                rounds = 10 * np.arange(values.shape[1])
                mean, std = values.mean(0), values.std(0)
                panel.plot(rounds, mean, color=color, linestyle=line, label=name)
                panel.fill_between(rounds, mean - std, mean + std, color=color, alpha=0.12)
            said = (
                "offsets of prompts uniform in [-5, 5]"
                if table == "offsets"
                else "control: no offsets"
            )
            panel.set(title=said, ylabel="mean of -|x - y|", ylim=(-3.5, 0.0))
            columns = 2 if table == "offsets" else 1
            panel.legend(fontsize=7, loc="lower right", ncols=columns)
        axes[1, 0].set_xlabel("rounds of 64 rewards")
        for panel, samples, title in zip(
            axes[:, 1], (before, after), ("before", "after LOOP"), strict=True
        ):
            panel.plot(*CENTRES.T, "k+", markersize=12)
            for prompt in range(MODES):
                for x, y in samples[prompt, :20]:
                    panel.text(
                        x, y, str(prompt), color=f"C{prompt}", fontsize=7, ha="center", va="center"
                    )
            panel.set(
                title=f"{title}: numbers are prompts, + modes",
                xlim=(-3, 3),
                ylim=(-3, 3),
                aspect="equal",
            )
        canvas.suptitle(
            "a diffusion model of eight Gaussians learns prompts from rewards (mean and deviation of "
            "the seeds)"
        )
    return canvas


def digits(shown: dict[str, np.ndarray]) -> Any:
    """Six samples of every prompt before and after; rows are prompts."""
    rows = sorted(shown.items(), key=lambda row: row[0] != "before")
    with figure(9.0, 5.4, ncols=len(shown)) as (canvas, panels):
        for panel, (name, samples) in zip(panels, rows, strict=True):
            tiles = samples.reshape(10, -1, 8, 8).transpose(0, 2, 1, 3)
            picture = np.pad(tiles, ((0, 0), (0, 1), (0, 0), (0, 1)), constant_values=1.0)
            height, width = 10 * 9, samples.shape[1] * 9
            panel.imshow(-picture.reshape(height, width), cmap="gray", vmin=-1, vmax=1)
            panel.set_yticks(9 * np.arange(10) + 4, [str(d) for d in range(10)])
            panel.set_xticks([])
            panel.grid(False)
            panel.set(title="before" if name == "before" else f"after {name}")
        panels[0].set_ylabel("prompt")
        canvas.suptitle(
            "digits 8x8 (scikit-learn): a conditional model, and its adapter after rewards by a\n"
            "classifier outside of the program"
        )
    return canvas
