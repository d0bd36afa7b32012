"""The figures of P/D-Serve's study."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from dflax import inference as inf
from experiments.studies.inference._pd_serve_runs import PROFILES
from experiments.tools.figures import figure

LOOKS = {
    "on demand": ("C0", "-", "o"),
    "round robin": ("C2", "--", "s"),
    "shortest queue": ("C4", "-.", "^"),
    "reports of 0.1 s": ("C1", ":", "v"),
    "reports of 1 s": ("C3", "--", "x"),
    "fewest connections": ("0.5", "-", "d"),
}


def forwarding_figure(
    loads: tuple[float, ...], success: dict[str, np.ndarray], splits: np.ndarray
) -> Any:
    """Left: success over load, `[loads, seeds]` each. Right: `[scenarios, splits, seeds]`."""
    with figure(10.0, 4.0, ncols=2) as (canvas, (left, right)):
        for name in (name for name in LOOKS if name in success):
            (color, line, mark), runs = LOOKS[name], success[name]
            left.plot(loads, runs.mean(1), color=color, linestyle=line, marker=mark, label=name)
            left.fill_between(loads, runs.min(1), runs.max(1), color=color, alpha=0.2, linewidth=0)
        left.set(
            xlabel="load of prefill",
            ylabel="share of first tokens within 0.5 s",
            title=f"8 prefill instances, bursts, mean and range of {runs.shape[1]} seeds",
        )
        left.legend(fontsize=8)
        sides = np.arange(1, 12)
        kinds = zip(PROFILES.items(), ("-", "--", ":"), "osv", strict=True)
        for number, ((name, of), line, mark) in enumerate(kinds):
            phi = np.asarray(inf.group_throughput(of, jnp.array(sides), jnp.array(12 - sides)))
            label = f"{name}: prefill {of.prefill:g} s, answer {of.decode:g} s"
            right.plot(sides, phi, line, color=f"C{number}", label=label)
            right.plot(sides, splits[number].mean(1), mark, color=f"C{number}", markersize=5)
        right.plot([], [], "ok", markersize=5, label="marks: runs at 1.3 times the capacity")
        right.set(
            xlabel="instances of 12 that prefill",
            ylabel="requests a second and instance",
            title="Lines: the formula. Each kind of traffic has its own best split",
        )
        right.legend(fontsize=8)
    return canvas


def levels_figure(
    paces: tuple[float, ...], found: dict[str, np.ndarray], followed: dict[str, np.ndarray]
) -> Any:
    """Left: rates `[paces, seeds]` within service levels. Right: a tide of the kind of traffic."""
    with figure(10.0, 4.0, ncols=2) as (canvas, (left, right)):
        looks = {"disaggregated": ("C0", "-", "o"), "aggregated": ("C3", "--", "s")}
        for name, (color, line, mark) in looks.items():
            runs = found[name]
            left.plot(paces, runs.mean(1), color=color, linestyle=line, marker=mark, label=name)
            left.fill_between(paces, runs.min(1), runs.max(1), color=color, alpha=0.2, linewidth=0)
        left.set(
            xlabel="time between tokens promised, over that of a full batch",
            ylabel="requests a second and instance",
            title="99 % within 0.5 s to the first token and that pace",
            ylim=(0, None),
        )
        left.legend(fontsize=9)
        minutes = np.arange(followed["fixed"].shape[-1]) * float(followed["seconds"]) / 60
        for name, label, (color, line) in (
            ("fixed", f"best fixed split, {followed['best']:.0f} of 12 prefill", ("C3", "--")),
            ("adjusted", "adjusted", ("C0", "-")),
        ):
            right.plot(minutes, _smooth(followed[name].mean(0)), line, color=color, label=label)
        right.set(
            xlabel="minutes",
            ylabel="success (5 s, 40 s), mean of seeds",
            title="Traffic that turns from long prompts to long answers",
            ylim=(0, 1.02),
        )
        other = right.twinx()
        other.step(minutes, followed["prefill"][0], ":", color="0.4", label="prefill instances")
        other.set(ylabel="instances that prefill, first seed (dotted)", ylim=(0, 12))
        other.grid(False)
        right.legend(fontsize=9, loc="lower left")
    return canvas


def _smooth(values: np.ndarray, width: int = 7) -> np.ndarray:
    """Means of seven blocks, as many as there were."""
    width = min(width, len(values))
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
