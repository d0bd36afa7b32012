"""G-Rank: peers that learn to rank from clicks they gossip, and what spam does to them.

The distance is Spearman's footrule between a peer's order of a term's items and that by all benign
clicks. Attackers join after a quarter of the ticks and spam at the half.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.tasks.search import Setup, World, curves
from experiments.tools.command import main
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Part, Picture, Study, Summary

CALM = {
    "G-Rank F=0": Setup("F=0"),
    "G-Rank F=1": Setup("F=1"),
    "popularity": Setup("popularity"),
    "own clicks": Setup("own clicks", "none"),
    "random order": Setup("random order"),
    "push F=0": Setup("F=0", "push"),
    "push F=1": Setup("F=1", "push"),
}
ATTACKED = {
    f"{attack} {rule}": Setup(rule, "pull", attack)
    for attack in ("inflation", "targeted", "epic")
    for rule in ("F=0", "F=1")
} | {f"inflation by push {rule}": Setup(rule, "push", "inflation") for rule in ("F=0", "F=1")}
PAPER = World(100, 39, 256, 3, 10, 10_000, 500)
STYLES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seeds: catalogues and runs.
      seed: of the first.
      peers: N, benign.
      terms: Q.
      items: M, each with three terms.
      top: K.
      ticks: T.
      every: ticks between measurements; divides T / 4.
      paper: also one run at the paper's size.
    """

    seeds: int = 8
    seed: int = 300
    peers: int = 20
    terms: int = 8
    items: int = 48
    top: int = 5
    ticks: int = 1000
    every: int = 125
    paper: bool = True

    @property
    def world(self) -> World:
        """Sizes of the runs."""
        return World(self.peers, self.terms, self.items, 3, self.top, self.ticks, self.every)


def peaceful(config: Config, stage: Stage = in_memory) -> Summary:
    """Without attackers: how fast the peers come near the order of all clicks."""
    report = Report()
    found = _runs(config, CALM, stage)
    at = _places(config)
    for name, own in found.items():
        _row(report, config, "without attackers", name, own)
    for rule in ("F=0", "F=1"):
        path = found[f"G-Rank {rule}"]["distance"]
        share = path / path[:, :1]
        report.claim(
            f"{rule}: the distance is below 35 % of its start at T / 4 and 20 % at T / 2 (each seed)",
            np.all(share[:, at[1]] < 0.35) and np.all(share[:, at[2]] < 0.2),
            [share[:, at[1]].max().round(3), share[:, at[2]].max().round(3)],
            [0.35, 0.2],
        )
    ends = {name: own["distance"][:, -1] for name, own in found.items()}
    times = ends["own clicks"] / np.maximum(ends["G-Rank F=0"], ends["G-Rank F=1"])
    report.claim(
        "own clicks alone end at more than 7 times the distance (each seed)",
        np.all(times > 7),
        times.round(1).tolist(),
        7,
    )
    half = [found[name]["distance"][:, at[2]].mean() for name in ("random order", "G-Rank F=0")]
    report.claim(
        "a random order has twice the distance at T / 2 (mean)",
        half[0] > 2 * half[1],
        round(half[0], 1),
        round(2 * half[1], 1),
    )
    early = {name: own["distance"][:, at[1]].mean() for name, own in found.items()}
    ratios = [early[f"push {rule}"] / early[f"G-Rank {rule}"] for rule in ("F=0", "F=1")]
    report.claim(
        "push is at most .7 of pull at T / 4 (mean)", max(ratios) <= 0.7, np.round(ratios, 2), 0.7
    )
    gains = {name: found[name]["ndcg"][:, -1] for name in found}
    report.claim(
        "NDCG ends above that of a random order (each seed)",
        np.all(gains["G-Rank F=0"] > gains["random order"]),
        gains["G-Rank F=0"].round(3).tolist(),
        gains["random order"].round(3).tolist(),
    )
    return report.summary({"g_rank": _figure(config, found, "without attackers")})


def attacked(config: Config, stage: Stage = in_memory) -> Summary:
    """With attackers: whom spam leads how far away."""
    report = Report()
    calm = _runs(config, {name: CALM[name] for name in ("G-Rank F=0", "G-Rank F=1")}, stage)
    found = _runs(config, ATTACKED, stage)
    for name, own in found.items():
        _row(report, config, "with attackers", name, own)
    ends = {name: own["distance"][:, -1] for name, own in found.items()}
    damage = {
        rule: ends[f"inflation {rule}"] - calm[f"G-Rank {rule}"]["distance"][:, -1]
        for rule in ("F=0", "F=1")
    }
    share = damage["F=0"] / damage["F=1"]
    report.claim(
        "inflation: the damage at F=0 is below 75 % of that at F=1 (each seed), 65 % (mean)",
        np.all(share < 0.75) and damage["F=0"].mean() < 0.65 * damage["F=1"].mean(),
        share.round(2).tolist(),
        0.75,
    )
    for rule, least in (("F=0", 15), ("F=1", 45)):
        more = ends[f"inflation {rule}"] - ends[f"targeted {rule}"]
        report.claim(
            f"{rule}: inflation is above targeted by {least} or more (each seed)",
            np.all(more >= least),
            more.round(1).tolist(),
            least,
        )
    gaps = [np.mean(ends[f"epic {rule}"] - ends[f"targeted {rule}"]) for rule in ("F=0", "F=1")]
    report.claim("epic is above targeted (mean)", min(gaps) > 0, np.round(gaps, 1), 0)
    after = _places(config)[2] + 1
    pairs = [
        (
            found[f"inflation by push {rule}"]["distance"][:, after].mean(),
            found[f"inflation {rule}"]["distance"][:, after].mean(),
        )
        for rule in ("F=0", "F=1")
    ]
    report.claim(
        "an eighth of the ticks after inflation, push is damaged more than pull (mean)",
        all(push > pull for push, pull in pairs),
        np.round([push for push, _ in pairs], 1).tolist(),
        np.round([pull for _, pull in pairs], 1).tolist(),
    )
    return report.summary({"g_rank_attacks": _figure(config, found, "attackers spam at the half")})


def paper_size(config: Config, stage: Stage = in_memory) -> Summary:
    """One run of 100 peers, 39 terms, 256 items and 10,000 ticks, with and without inflation."""
    report = Report()
    setups = {"F=0": Setup("F=0"), "F=0, inflation": Setup("F=0", "pull", "inflation")}
    found = {
        name: stage(f"{name}, the paper's size", lambda s=setup: curves(PAPER, s, 1, config.seed))
        for name, setup in setups.items()
    }
    table = "100 peers, 39 terms, 256 items, 10,000 ticks"
    for name, own in found.items():
        path = own["distance"][0]
        report.row(
            table,
            f"{name}, the paper's size",
            None,
            start=path[0],
            half=path[len(path) // 2],
            end=path[-1],
            leader=own["leader"][0, -1],
            ndcg=own["ndcg"][0, -1],
            clicks_known=own["size"][0, -1],
        )
    path = found["F=0"]["distance"][0]
    report.claim(
        "paper's size: the distance falls below 35 % of its start",
        path[-1] < 0.35 * path[0],
        round(float(path[-1]), 1),
        round(float(0.35 * path[0]), 1),
    )
    spam = found["F=0, inflation"]["distance"][0]
    report.claim(
        "paper's size: inflation leads away from the order",
        spam[-1] > path[-1],
        round(float(spam[-1]), 1),
        round(float(path[-1]), 1),
    )
    return report.summary({})


def _runs(config: Config, setups: dict[str, Setup], stage: Stage) -> dict[str, dict[str, Any]]:
    return {
        name: stage(name, lambda s=setup: curves(config.world, s, config.seeds, config.seed))
        for name, setup in setups.items()
    }


def _places(config: Config) -> list[int]:
    """The measurements at 0, T / 4, T / 2 and T."""
    quarter = config.ticks // config.every // 4
    return [0, quarter, 2 * quarter, 4 * quarter]


def _row(report: Report, config: Config, title: str, name: str, own: dict[str, Any]) -> None:
    table = f"{title}: distance over {config.seeds} seeds"
    start, quarter, half, end = _places(config)
    path = own["distance"]
    report.row(
        table,
        name,
        None,
        start=path[:, start],
        quarter=path[:, quarter],
        half=path[:, half],
        end=path[:, end],
        least=path[:, end].min(),
        largest=path[:, end].max(),
        ndcg=own["ndcg"][:, end],
        leader=own["leader"][:, end],
        clicks_known=own["size"][:, end],
        infected=own["infected"][:, end],
    )


def _figure(config: Config, found: dict[str, dict[str, Any]], title: str) -> Any:
    ticks = np.arange(found[next(iter(found))]["distance"].shape[1]) * config.every
    with figure(7.6, 4.4) as (drawn, axes):
        for place, (name, own) in enumerate(found.items()):
            path = own["distance"]
            style = STYLES[place % len(STYLES)]
            axes.plot(
                ticks, path.mean(0), linestyle=style, marker="osv^Dxd+"[place % 8], ms=4, label=name
            )
            axes.fill_between(ticks, path.min(0), path.max(0), alpha=0.1, lw=0, color=f"C{place}")
        axes.set(
            xlabel="ticks, of one search and one contact each",
            ylabel="footrule to the order of all benign clicks",
            ylim=(0, None),
            title=f"{config.peers} peers, {config.items} items, {title};\n"
            f"bands: least and largest of {config.seeds} seeds",
        )
        axes.legend(fontsize=8, ncols=2)
    return drawn


STUDY = Study(
    Config,
    (
        Part("peaceful", peaceful, needs=()),
        Part("attacked", attacked, needs=()),
        Part("paper's size", paper_size, needs=(), wanted=lambda config: config.paper),
    ),
    seconds=180,
    quick=Config(seeds=2, ticks=200, every=25, paper=False),
    pictures=(
        Picture(
            name="g_rank",
            file="g_rank.png",
            claim=(
                "Gossiped clicks bring every peer near the order of all of them, own "
                "clicks never do."
            ),
            data="simulated clicks of {config.peers} peers on {config.items} items",
            bands="bands: least to largest of {config.seeds} seeds",
            headed=False,
        ),
        Picture(
            name="g_rank_attacks",
            file="g_rank_attacks.png",
            claim=(
                "Inflation by a tenth of the peers leads furthest away, and half as far "
                "where who is not alike has no say."
            ),
            data="simulated clicks of {config.peers} peers on {config.items} items",
            bands=(
                "bands: least to largest of {config.seeds} seeds; before the attack rows "
                "of one kind of gossip lie on each other"
            ),
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
