"""Figures of Lattica's study."""

from typing import Any

import numpy as np

from experiments.tools.figures import curve, figure, looks

STYLES = ("o-", "s--", "^:", "D-.")


def protocols_figure(
    links: dict[str, Any],
    rates: tuple[float, ...],
    lookups: dict[int, dict[str, np.ndarray]],
    gossip: dict[str, dict[int, dict[str, np.ndarray]]],
    swarms: dict[int, dict[str, np.ndarray]],
) -> Any:
    """Four panels: links, hops, rounds of gossip, rounds of exchange; points are means over seeds."""
    with figure(9.6, 7.0, nrows=2, ncols=2) as (drawn, axes):
        (reach, hops), (rounds, blocks) = axes
        fine = np.linspace(0, 1, 101)
        possible = links["possible"][:, 0].mean()
        reach.plot(fine, possible * (1 - (1 - fine) ** 3), "k-", linewidth=0.8, label="closed form")
        share = links["share"]
        reach.errorbar(
            rates,
            share.mean(0),
            [share.mean(0) - share.min(0), share.max(0) - share.mean(0)],
            fmt="o",
            color="C0",
            label="direct, simulated",
        )
        reach.plot(rates, links["reachable"].mean(0), "s", color="C1", label="with relays")
        reach.set(
            xlabel="success of one try",
            ylabel="share of pairs",
            ylim=(0, 1.05),
            title="who reaches whom, 3 tries",
        )
        reach.legend(loc="lower right", fontsize=8)
        sizes = list(lookups)
        for style, name in zip(STYLES, ("hops, k = 1", "hops, k = 20", "rounds"), strict=False):
            label = "rounds of a full lookup, k = 20" if name == "rounds" else name
            hops.plot(sizes, [lookups[n][name].mean() for n in sizes], style, label=label)
        hops.plot(sizes, 0.5 * np.log2(sizes), "k-", linewidth=0.8, label="0.5 log2 n")
        hops.set(xscale="log", xlabel="peers", ylabel="hops, rounds", ylim=(0, 12))
        hops.set_title("Kademlia, 300 lookups a seed")
        hops.set_xticks(sizes, [str(n) for n in sizes])
        hops.minorticks_off()
        hops.legend(loc="upper left", fontsize=8)
        for style, (name, found) in zip(STYLES, gossip.items(), strict=False):
            own = list(found)
            rounds.plot(own, [found[n]["rounds"].mean() for n in own], style, label=name)
        own = list(gossip["push-pull"])
        rounds.plot(own, np.log2(own) + 1, "k-", linewidth=0.8, label="log2 n + 1")
        rounds.set(
            xscale="log",
            xlabel="peers",
            ylabel="rounds",
            ylim=(0, None),
            title="until all replicas are equal",
        )
        rounds.set_xticks(own, [str(n) for n in own])
        rounds.minorticks_off()
        rounds.legend(fontsize=8)
        own = list(swarms)
        for style, name in zip(STYLES, ("coordinated", "blind", "star"), strict=False):
            blocks.plot(own, [swarms[n][name].mean() for n in own], style, label=name)
        blocks.plot(own, 15 + np.ceil(np.log2(own)), "k-", linewidth=0.8, label="lower bound")
        blocks.set(
            xscale="log",
            yscale="log",
            xlabel="peers",
            ylabel="rounds",
            title="until all have 16 blocks of one source",
        )
        blocks.set_xticks(own, [str(n) for n in own])
        blocks.set_yticks([20, 50, 100, 200, 500], ["20", "50", "100", "200", "500"])
        blocks.minorticks_off()
        blocks.legend(fontsize=8)
    return drawn


def training_figure(
    curves: dict[str, dict[str, dict[str, np.ndarray]]], order: list[str], peers: int
) -> Any:
    """Accuracy of the mean model's clients' average and distance over rounds, for each method."""
    with figure(9.6, 3.8, ncols=2) as (drawn, axes):
        for place, (method, graphs) in enumerate(curves.items()):
            panel = axes[place]
            for name, look in looks(order).items():
                found = graphs[name]
                distance = np.maximum(found["distance"], 1e-7)
                rounds = np.arange(1, distance.shape[1] + 1)
                label = f"{name}: {100 * found['local'].mean():.1f} %"
                curve(panel, rounds, distance, look, label)
            panel.set(xlabel="round", yscale="log", title=method)
            panel.legend(
                fontsize=7,
                title="clients' models, accuracy at the end",
                title_fontsize=7,
                loc="center left",
                bbox_to_anchor=(0.0, 0.36),
            )
        axes[0].set_ylabel("distance from the mean model")
        drawn.suptitle(
            f"digits, {peers} peers behind NATs, labels skewed; "
            "bands: least to largest of networks and splits\n"
            "closed NATs: nobody is public, half are symmetric, the others port-restricted"
        )
    return drawn
