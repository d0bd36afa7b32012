"""The figures of AirLLM's study."""

from typing import Any

import numpy as np

from experiments.tools.figures import figure

STYLES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 4)), (0, (8, 6)))
MARKERS = "osD^v<>Pp*Xh"


def regrets(curves: dict[str, np.ndarray], violated: dict[str, np.ndarray], block: int) -> Any:
    """Regret over episodes, and how often nothing could be sent in the end."""
    with figure(10.5, 5.0, ncols=2, width_ratios=(3, 2)) as (canvas, (left, right)):
        for number, (name, curve) in enumerate(curves.items()):
            blocks = curve[:, : curve.shape[1] // block * block].reshape(len(curve), -1, block)
            mean = blocks.mean(axis=(0, 2))
            at = block * (np.arange(len(mean)) + 0.5)
            left.plot(at, mean, linestyle=STYLES[number % len(STYLES)], label=name)
        left.set(
            yscale="log",
            xlabel="episodes of 15 transmissions",
            ylabel="regret a step, mean over seeds",
            title="closed-form loss of 24 ranks, link of -5 to 15 dB",
        )
        canvas.legend(
            *left.get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside lower center"
        )
        for place, values in enumerate(violated.values()):
            right.plot(100 * values, np.full(len(values), place), "o", color=f"C{place}", alpha=0.6)
        right.set_yticks(range(len(violated)), list(violated), fontsize=7)
        right.invert_yaxis()
        right.set(
            xlabel="% of the last tenth, a dot a seed",
            title="transmissions that did not fit",
            xlim=(-2, None),
        )
    return canvas


def accuracies(accuracy: dict[str, np.ndarray], sent: dict[str, np.ndarray]) -> Any:
    """Accuracy in the end against what was sent."""
    with figure(9.0, 4.2) as (canvas, axes):
        for number, (name, values) in enumerate(accuracy.items()):
            axes.errorbar(
                sent[name].mean(),
                100 * values.mean(),
                xerr=sent[name].std(),
                yerr=100 * values.std(),
                fmt=MARKERS[number % len(MARKERS)],
                label=name,
            )
        axes.set(
            xlabel="parameters sent a transmission, mean over the run (0 where nothing fitted)",
            ylabel="test accuracy in the end, %",
            title="8x8 digits: a network of 0 to 4, tuned for 0 to 9 over the air",
        )
        canvas.legend(fontsize=8, loc="outside right center")
    return canvas
