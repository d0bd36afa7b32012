"""D2OC covers a density closer than SMC and strips; what sharing, reach and time are worth."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from dflax import robots
from experiments.tasks.coverage import Area, area, areas, distances, flown
from experiments.tools.command import main
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Part, Picture, Study, Summary

METHODS = ("D2OC", "D2OC, reach 0.3", "D2OC, all at once", "D2OC, no sharing", "D2C", "SMC")
STRIPS = "strips"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seeds: areas, each with samples and starts of its own.
      seed: of the first.
      agents: n.
      steps: of a mission, 0.1 s each.
      samples: N, of the density.
      lengths: missions of other lengths.
      teams: other numbers of agents, each with as many places in all.
      film: a GIF of the first seed's mission is written there; "" for none.
    """

    seeds: int = 5
    seed: int = 20
    agents: int = 4
    steps: int = 400
    samples: int = 400
    lengths: tuple[int, ...] = (100, 200, 400, 800)
    teams: tuple[int, ...] = (2, 4, 8)
    film: str = ""


def methods(config: Config, stage: Stage = in_memory) -> Summary:
    """How far what is visited is from the density, method by method."""
    seeds = range(config.seed, config.seed + config.seeds)
    drawn = areas(seeds, config.agents, config.samples)
    report = Report()
    found: dict[str, np.ndarray] = {}
    shown: dict[str, np.ndarray] = {}
    for name in METHODS:

        def measured(name: str = name) -> dict[str, np.ndarray]:
            visited, metrics = flown(name, config.agents, config.steps)(drawn)
            last = {key: np.asarray(value)[:, -1] for key, value in metrics.items()}
            apart = distances(visited, drawn.samples)
            return {"w2": apart, "path": np.asarray(visited[0])} | {
                key: last[key] for key in ("remaining", "overlap") if key in last
            }

        result = stage(name, measured)
        found[name], shown[name] = result["w2"], result["path"]
        rest = {key: result[key] for key in ("remaining", "overlap") if key in result}
        spread = {"least": result["w2"].min(), "most": result["w2"].max()}
        report.row("distance to the density", name, None, w2=result["w2"], **spread, **rest)
    paths = np.asarray(robots.lawn_mower(config.agents, config.steps))
    found[STRIPS] = distances(np.stack([paths] * config.seeds), drawn.samples)
    shown[STRIPS] = paths
    spread = {"least": found[STRIPS].min(), "most": found[STRIPS].max()}
    report.row("distance to the density", STRIPS, None, w2=found[STRIPS], **spread)
    _claims_of_methods(report, found)
    if config.film:
        _film(area(config.seed, config.agents, config.samples), shown["D2OC"], config.film)
    return report.summary({"d2oc": _paths_figure(drawn, shown, found)})


def _claims_of_methods(report: Report, found: dict[str, np.ndarray]) -> None:
    ours, spectral, strips = found["D2OC"], found["SMC"], found[STRIPS]
    alone = found["D2OC, no sharing"]
    report.claim(
        "D2OC is less than 0.85 times as far as SMC, on the mean of the seeds",
        ours.mean() < 0.85 * spectral.mean(),
        ours.tolist(),
        spectral.tolist(),
    )
    report.claim(
        "D2OC and SMC are closer than strips on every seed",
        np.all(ours < strips) and np.all(spectral < strips),
        [ours.max(), spectral.max()],
        strips.min(),
    )
    report.claim(
        "without sharing D2OC is more than 1.2 times as far on every seed, and twice on the mean",
        np.all(alone > 1.2 * ours) and alone.mean() > 2 * ours.mean(),
        (alone / ours).tolist(),
        [1.2, 2.0],
    )
    report.claim(
        "one agent after another is closer than all at once, on the mean of the seeds",
        ours.mean() < found["D2OC, all at once"].mean(),
        ours.mean(),
        found["D2OC, all at once"].mean(),
    )


def mission_sizes(config: Config, stage: Stage = in_memory) -> Summary:
    """The distance against the mission's length, and against the number of agents."""
    seeds = range(config.seed, config.seed + config.seeds)
    report = Report()
    longer, wider = {}, {}
    for steps in config.lengths:

        def timed(steps: int = steps) -> np.ndarray:
            drawn = areas(seeds, config.agents, config.samples)
            return distances(flown("D2OC", config.agents, steps)(drawn)[0], drawn.samples)

        longer[steps] = stage(f"{steps} steps", timed)
        report.row("length", f"{steps} steps", None, w2=longer[steps], std=longer[steps].std())
    for agents in config.teams:

        def shared(agents: int = agents) -> np.ndarray:
            drawn = areas(seeds, agents, config.samples)
            steps = config.agents * config.steps // agents
            return distances(flown("D2OC", agents, steps)(drawn)[0], drawn.samples)

        wider[agents] = stage(f"{agents} agents", shared)
        report.row("team", f"{agents} agents", None, w2=wider[agents], std=wider[agents].std())
    table = np.stack(list(longer.values()))
    report.claim(
        "longer missions are closer on the mean, and the longest beats the shortest (each seed)",
        np.all(np.diff(table.mean(1)) < 0) and np.all(table[-1] < table[0]),
        table.mean(1).tolist(),
        0,
    )
    return report.summary({"d2oc_sizes": _sizes_figure(longer, wider)})


def _paths_figure(drawn: Area, shown: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> Any:
    names = ["D2OC", "D2OC, no sharing", "SMC", STRIPS]
    with figure(12.0, 3.4, ncols=5, width_ratios=(1, 1, 1, 1, 1.2)) as (canvas, axes):
        for panel, name in zip(axes, names, strict=False):
            panel.plot(*drawn.samples[0].T, ".", color="0.75", markersize=3, zorder=0)
            for path, style in zip(shown[name], ("-", "--", "-.", ":"), strict=False):
                panel.plot(*path.T, style, linewidth=0.9)
            w2 = robots.wasserstein(shown[name], drawn.samples[0])
            panel.set(title=f"{name}: {w2:.3f}", xlim=(-0.1, 1.1), ylim=(-0.1, 1.1), aspect="equal")
            panel.set_xticks([0, 1])
            panel.set_yticks([0, 1])
            panel.set(xlabel="x", ylabel="y")
        rows = list(found)
        for place, name in enumerate(rows):
            axes[4].plot(found[name], [place] * len(found[name]), "k|", markersize=9)
            axes[4].plot(found[name].mean(), place, "o", color="C3", markersize=6)
        axes[4].set_yticks(range(len(rows)), rows, fontsize=8)
        axes[4].invert_yaxis()
        axes[4].set(
            xlabel="2-Wasserstein distance", title="mean (dot), seeds (bars)", xlim=(0, None)
        )
        canvas.suptitle(
            "paths of 4 agents (a line style each) over samples of three Gaussians (grey) in the unit "
            "square, first seed, and their distance to them"
        )
    return canvas


def _sizes_figure(longer: dict[int, np.ndarray], wider: dict[int, np.ndarray]) -> Any:
    with figure(7.0, 3.4, ncols=2, sharey=True) as (canvas, axes):
        for panel, (label, rows) in zip(
            axes,
            (("steps of 4 agents", longer), ("agents, 1,600 places in all", wider)),
            strict=True,
        ):
            sizes = list(rows)
            values = np.stack(list(rows.values()))
            panel.plot(sizes, values, ".", color="0.6")
            panel.plot(sizes, values.mean(1), "o-", color="C0", label="mean of seeds")
            panel.set(xscale="log", ylim=(0, None), xlabel=label)
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.minorticks_off()
        axes[0].set_ylabel("2-Wasserstein distance")
        axes[0].legend()
    return canvas


def _film(drawn: Area, paths: np.ndarray, path: str, frames: int = 80) -> None:
    """A GIF of a mission: samples fade where their mass has been taken."""
    with figure(3.6, 3.6) as (canvas, panel):
        from matplotlib.animation import FuncAnimation, PillowWriter

        panel.plot(*drawn.samples.T, ".", color="0.75", markersize=3)
        panel.set(xlim=(-0.1, 1.1), ylim=(-0.1, 1.1), aspect="equal")
        panel.set_xticks([0, 1])
        panel.set_yticks([0, 1])
        lines = [panel.plot([], [], "-", linewidth=1.0)[0] for _ in paths]
        heads = [panel.plot([], [], "o", color=line.get_color(), markersize=6)[0] for line in lines]

        def draw(frame: int) -> list[Any]:
            until = (frame + 1) * paths.shape[1] // frames
            for line, head, way in zip(lines, heads, paths, strict=True):
                line.set_data(*way[:until].T)
                head.set_data(*way[until - 1 : until].T)
            panel.set_title(f"D2OC, {0.1 * until:.0f} s")
            return [*lines, *heads]

        made = FuncAnimation(canvas, draw, frames=frames, blit=False)
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        made.save(path, PillowWriter(fps=12), dpi=70)


STUDY = Study(
    Config,
    (Part("methods", methods, needs=()), Part("sizes", mission_sizes, needs=())),
    quick=Config(seeds=2, steps=200, samples=200, lengths=(50, 200), teams=(2, 4)),
    seconds=60,
    pictures=(
        Picture(
            name="d2oc",
            file="d2oc.png",
            claim=(
                "D2OC covers a density closer than strips do and than SMC on the mean, "
                "and needs what agents share."
            ),
            data="400 samples of three Gaussians in the unit square, {config.agents} agents",
            bands="dots: means, bars: each of {config.seeds} seeds",
            headed=False,
        ),
        Picture(
            name="d2oc_sizes",
            file="d2oc_sizes.png",
            claim="Longer missions come closer; the same places dealt to more agents do not.",
            data="samples of three Gaussians in the unit square",
            bands="small dots: each of {config.seeds} seeds",
        ),
        Picture(
            name="film",
            file="d2oc.gif",
            claim="A mission of four agents by D2OC.",
            data="400 samples of three Gaussians in the unit square",
            bands="one seed",
            flags="--film docs/figures/d2oc.gif",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
