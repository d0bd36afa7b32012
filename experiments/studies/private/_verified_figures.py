"""The figures of the study of verified inference."""

from typing import Any

import numpy as np

from experiments.tools.figures import figure

MARKS = "os^Dv"


def committees(
    shares: tuple[float, ...],
    sizes: tuple[int, ...],
    needed: np.ndarray,
    wrong: np.ndarray,
    tails: np.ndarray,
) -> Any:
    """Accepted wrong answers over the share of liars; lines are binomial tails."""
    with figure(6.4, 4.2) as (drawn, axes):
        for place, k in enumerate(sizes):
            color = f"C{place}"
            own = wrong[:, place]
            seen = own.mean(0) > 0
            axes.plot(shares[1:], tails[place, 1:], color=color, linewidth=1)
            spread = np.abs(np.stack([own.min(0), own.max(0)]) - own.mean(0))
            axes.errorbar(
                np.array(shares)[seen],
                own.mean(0)[seen],
                spread[:, seen],
                fmt=MARKS[place],
                color=color,
                capsize=3,
                label=f"k = {k}, {needed[place]} must agree",
            )
        axes.set(
            yscale="log",
            ylim=(3e-5, 1),
            xlabel="probability f that a node lies at a query, all alike",
            ylabel="share of queries with a wrong answer accepted",
            title=(
                f"digits, 20 nodes: marks are measured (range of {len(wrong)} seeds),\n"
                "lines the binomial tail P[Bin(k, f) >= quorum]"
            ),
        )
        axes.legend(fontsize=8)
    return drawn


def audits(
    rates: tuple[float, ...],
    delay: np.ndarray,
    predicted: np.ndarray,
    shares: tuple[float, ...],
    gain: np.ndarray,
    line: np.ndarray,
) -> Any:
    """When lazy nodes are removed, and what cheating gains."""
    with figure(9.4, 3.8, ncols=2) as (drawn, axes):
        left, right = axes
        for place, (name, part) in enumerate((("4 bits", slice(2)), ("16 units", slice(2, 4)))):
            own = delay[..., part].transpose(1, 0, 2).reshape(len(rates), -1)
            middle = np.nanmean(own, axis=1)
            shift = np.array(rates) * (0.97 + 0.06 * place)
            for x, row in zip(shift, own, strict=True):
                left.plot(
                    np.full(row.size, x), row, ".", color=f"C{place}", alpha=0.4, markersize=4
                )
            left.plot(
                shift, middle, MARKS[place], color=f"C{place}", label=f"runs {name}: mean, each"
            )
        left.plot(rates, predicted, "k-", linewidth=1, label="3 N / (p k)")
        left.set(
            xscale="log",
            yscale="log",
            xlabel="p: share of queries audited",
            ylabel="queries until it is removed",
            title="4 lazy nodes of N = 20, committees of k = 7",
        )
        left.set_xticks(rates, [f"{p:g}" for p in rates])
        left.minorticks_off()
        left.legend(fontsize=8)
        spread = np.abs(np.stack([gain.min(0), gain.max(0)]) - gain.mean(0))
        right.errorbar(shares, gain.mean(0), spread, fmt="o", capsize=3, label="measured")
        right.plot(shares, line, "k-", linewidth=1, label="saved - a (fine + reward)")
        right.axhline(0, color="k", linewidth=0.8, linestyle=":")
        right.axvline(0.2, color="C1", linewidth=1, linestyle="--", label="predicted boundary")
        right.set(
            xlabel="a: share of a node's executions that is audited",
            ylabel="gain of cheating per execution",
            title=f"saved 0.4, reward 1, fine 1; range of {len(gain)} seeds",
        )
        right.legend(fontsize=8)
        drawn.suptitle("digits, lazy nodes run 4-bit weights or a network of 16 units")
    return drawn


def leakage(noises: tuple[float, ...], found: dict[int, dict[str, np.ndarray]]) -> Any:
    """Accuracy against the error of reconstructed inputs, by cut and noise."""
    with figure(9.4, 3.9, ncols=2, sharey=True) as (drawn, axes):
        named = (("ridge", "ridge regression"), ("network", "a ridge and a network of 128 units"))
        for panel, (probe, title) in zip(axes, named, strict=True):
            for place, (cut, own) in enumerate(found.items()):
                error, accuracy = own[probe], own["accuracy"]
                x, y = error.mean(0), accuracy.mean(0)
                spread = [
                    np.abs(np.stack([v.min(0), v.max(0)]) - v.mean(0)) for v in (error, accuracy)
                ]
                panel.errorbar(
                    *(x, y),
                    yerr=spread[1],
                    xerr=spread[0],
                    fmt=f"{MARKS[place]}-",
                    capsize=2,
                    linewidth=1,
                    label=f"cut after layer {cut} ({(64, 32, 16)[cut - 1]} units)",
                )
                if cut == 1:
                    for sigma, at in zip(noises, zip(x, y, strict=True), strict=True):
                        panel.annotate(
                            f"{sigma:g}", at, (-4, -12), textcoords="offset points", fontsize=8
                        )
            panel.set(
                xlabel="MSE / Var of reconstructed inputs (1: nothing is found)",
                title=f"inverted by {title}",
                xlim=(0, 1),
            )
        axes[0].set_ylabel("accuracy of the split model")
        axes[1].legend(fontsize=8, loc="lower left")
        seeds = len(next(iter(found.values()))["ridge"])
        drawn.suptitle(
            "digits, MLP 64-32-16: noise of 0, 0.5, 1, 2 deviations (numbers) on what is sent over the "
            f"cut; range of {seeds} seeds"
        )
    return drawn
