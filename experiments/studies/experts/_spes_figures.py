"""Figures of the study of SPES: losses over tokens, and how alike experts are."""

from typing import Any

import numpy as np

from experiments.studies.experts._spes_methods import (
    CENTRAL,
    DENSE,
    DILOCO,
    NESTEROV,
    RING,
    SILENT,
    SPES,
    UNMERGED,
    Config,
)
from experiments.tools.figures import curve, figure, looks

LOOKS = looks((CENTRAL, DENSE, DILOCO, SPES, UNMERGED, RING, SILENT, NESTEROV))


def _curves(panel: Any, config: Config, found: dict[str, Any]) -> None:
    for name, look in LOOKS.items():
        if name not in found:
            continue
        losses = found[name]["loss"]
        tokens = config.nodes * config.batch_size * config.local_steps * config.length
        at = np.arange(1, losses.shape[1] + 1) * tokens / 1e6
        curve(panel, at, losses, look, name)
    panel.set(xlabel="million tokens, all nodes together", ylabel="held-out loss, nats per token")


def on_sources(config: Config, found: dict[str, Any], floor: np.ndarray) -> Any:
    """Curves, last losses by seed, and the cosine of experts."""
    with figure(11.5, 4.2, ncols=3, width_ratios=(1.5, 1, 1)) as (canvas, axes):
        _curves(axes[0], config, found)
        axes[0].axhline(floor.mean(), color="0.4", linewidth=0.8, linestyle=":")
        axes[0].annotate(
            "entropy, source known",
            (1.0, floor.mean()),
            xycoords=axes[0].get_yaxis_transform(),
            **{"ha": "right", "va": "top", "fontsize": 8},
        )
        axes[0].set_ylim(bottom=floor.mean() - 0.1)
        axes[0].legend(fontsize=7, loc="upper right")
        axes[0].set_title("Markov sources, bands: least to largest of the seeds", fontsize=10)
        names = [name for name in LOOKS if name in found]
        for place, name in enumerate(names):
            last = found[name]["loss"][:, -1]
            axes[1].plot(last, [place] * len(last), "|", color="0.2", markersize=10)
            look = LOOKS[name]
            axes[1].plot(last.mean(), place, look.marker, color=look.color, markersize=6)
        axes[1].set_yticks(range(len(names)), names, fontsize=8)
        axes[1].invert_yaxis()
        axes[1].set(xlabel="held-out loss at the end", title="mean (mark), seeds (bars)")
        rounds = np.arange(1, config.rounds + 1)
        for name in (SPES, UNMERGED, SILENT):
            cosine = found[name]["expert_cosine"].mean(0, keepdims=True)
            curve(axes[2], rounds, cosine, LOOKS[name], name)
        axes[2].axvline(config.merge_until, color="0.4", linewidth=0.8, linestyle=":")
        axes[2].set(xlabel="synchronisation", title="alikeness of experts", ylim=(0, None))
        axes[2].set_ylabel("mean cosine of two experts, mean of seeds")
        axes[2].text(config.merge_until, 0.003, " merging ends", fontsize=8, va="bottom")
        axes[2].legend(fontsize=8)
    return canvas


def on_text(config: Config, found: dict[str, Any]) -> Any:
    """Curves."""
    with figure(6.0, 4.0) as (canvas, panel):
        _curves(panel, config, found)
        seeds = len(next(iter(found.values()))["loss"])
        panel.set_title(
            "Python's language reference, a character a token\n"
            f"bands: least to largest of {seeds} seeds",
            fontsize=10,
        )
        panel.legend()
    return canvas
