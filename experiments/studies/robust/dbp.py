"""Robots block liars by accusations (DBP): exactly F and F blocked, how soon, and in swarms of 300."""

import dataclasses
from typing import Any

import numpy as np

from experiments.tasks.swarms import (
    averaged,
    blocklists,
    moving,
    observers,
    runs,
    scene,
    swarm,
)
from experiments.tools.command import main
from experiments.tools.figures import curve, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Part, Picture, Study, Summary

HONEST, LYING = 40, 8
OBSERVERS = (15, LYING + 1, LYING, 3)
LEFT_OUT = (0, 2, LYING)
# What of a run under the protocol is judged.
LAST = ("error", "valid", "blocked_byzantine", "blocked_cooperative", "agree")


# When all liars were blocked in the paper's swarms.
PAPER = {
    "tracking": "200 to 400 in the paper",
    "time": "about 400 in the paper; here liars lie at once",
    "localisation": "told without a tick in the paper",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seeds: repetitions, each with places and observers of its own.
      seed: of the first.
      ticks: of the protocol in static scenes.
      rounds: of averaging.
      sizes: numbers of robots whose speed is compared.
      share: of the paper's 300, 195 and 250 robots in the three applications.
      swarm_seeds: repetitions of these.
      swarm_ticks: of these.
    """

    seeds: int = 5
    seed: int = 0
    ticks: int = 40
    rounds: int = 300
    sizes: tuple[int, ...] = (48, 96, 192)
    share: float = 1.0
    swarm_seeds: int = 3
    swarm_ticks: int = 600


def few_observers(config: Config, stage: Stage = in_memory) -> Summary:
    """A number that 15, 9, 8 or 3 of 40 robots know, and 8 that lie about it."""
    seeds = range(config.seed, config.seed + config.seeds)
    scenes = [scene(HONEST, LYING, 1.0, seed) for seed in seeds]
    simulate = blocklists(HONEST, LYING, config.ticks)
    report = Report()
    blocked: dict[int, dict[str, np.ndarray]] = {}
    for count in OBSERVERS:
        known = [observers(HONEST, LYING, count, seed) for seed in seeds]

        def simulated(known: list[np.ndarray] = known) -> dict[str, np.ndarray]:
            each = [
                simulate(knows, drawn.places) for knows, drawn in zip(known, scenes, strict=True)
            ]
            last = {name: np.array([found[name][-1] for found in each]) for name in LAST}
            done = [np.asarray(found["complete"]) == 1 for found in each]
            return last | {"ticks": np.array([d.argmax() if d.any() else np.nan for d in done])}

        blocked[count] = found = stage(f"{count} observers", simulated)
        report.row("the protocol", f"DBP, {count} observers", None, **found)

    def averages() -> np.ndarray:
        known = [observers(HONEST, LYING, OBSERVERS[0], seed) for seed in seeds]
        return np.stack(
            [
                averaged(drawn, knows, HONEST, LEFT_OUT, config.rounds)
                for drawn, knows in zip(scenes, known, strict=True)
            ]
        )

    errors = stage("averaging", averages)
    for place, f in enumerate(LEFT_OUT):
        name = f"W-MSR, F = {f}" if f else "linear consensus"
        column = errors[:, place]
        report.row("averaging, 15 observers", name, None, error=column, std=column.std())
    _claims_of_blocking(report, blocked, [drawn.diameter for drawn in scenes])
    heard = []
    for drawn, seed in zip(scenes, seeds, strict=True):
        knows = observers(HONEST, LYING, OBSERVERS[0], seed)
        heard.append(int(drawn.links[:HONEST][~knows[:HONEST]][:, knows].sum(1).max()))
    _claims_of_averaging(report, errors, np.array(heard))
    return report.summary({"dbp_observers": _errors_figure(blocked, errors)})


def _claims_of_blocking(
    report: Report, blocked: dict[int, dict[str, np.ndarray]], diameters: list[int]
) -> None:
    for count in OBSERVERS[:2]:
        found = blocked[count]
        counts = np.concatenate([found["blocked_byzantine"], found["blocked_cooperative"]])
        known = (found["error"] == 0) & (found["valid"] == 1) & found["agree"]
        report.claim(
            f"{count} observers: exactly 8 liars and 8 others blocked by all alike, error 0 (each seed)",
            np.all(counts == LYING) and np.all(known),
            {"error": found["error"].tolist(), "blocked": counts.tolist()},
            {"error": 0, "blocked": LYING},
        )
        late = found["ticks"] - np.array(diameters)
        report.claim(
            f"{count} observers: all block all liars within the diameter + 2 ticks (each seed)",
            np.all(late <= 2),
            late.tolist(),
            2,
        )
    found = blocked[LYING]
    share = LYING / HONEST
    report.claim(
        "8 observers: all liars blocked, and all observers: the others know nothing, and know it",
        np.all(found["blocked_byzantine"] == LYING)
        and np.allclose(found["valid"], share)
        and np.all(found["error"] == 0),
        found["valid"].tolist(),
        share,
    )
    found, wrong = blocked[3], 60 * (HONEST - 3) / HONEST
    report.claim(
        "3 observers: 3 liars and 3 others blocked, the error is 60 x 37/40 (each seed)",
        np.all(found["blocked_byzantine"] == 3) and np.allclose(found["error"], wrong),
        found["error"].tolist(),
        wrong,
    )


def _claims_of_averaging(report: Report, errors: np.ndarray, heard: np.ndarray) -> None:
    """`heard`: the most observers that a robot which is none hears, `[seeds]`."""
    linear, two, eight = errors.T
    report.claim("linear consensus: error above 10", np.all(linear > 10), linear.tolist(), 10)
    report.claim(
        "W-MSR, F = 2: error above 4 in the mean, and above 1 in each seed",
        two.mean() > 4 and np.all(two > 1),
        two.tolist(),
        4,
    )
    still = heard <= LYING
    report.claim(
        "W-MSR, F = 8: where nobody hears more than 8 observers nobody moves, and the error is that of "
        "the start, 6.25; else it is lower",
        np.allclose(eight[still], 6.25) and np.all(eight[~still] < 6.25),
        eight.tolist(),
        6.25,
    )


def swarm_sizes(config: Config, stage: Stage = in_memory) -> Summary:
    """Ticks until every cooperative robot blocks all liars, against the diameter of their graph."""
    seeds = range(config.seed, config.seed + config.seeds)
    report = Report()
    found: dict[str, np.ndarray] = {}
    for law, side in (("area", lambda n: 1.0), ("density", lambda n: float(np.sqrt(n / 48)))):

        def timed(side: Any = side) -> np.ndarray:
            each = []
            for n in config.sizes:
                lying = n // 6
                for seed in seeds:
                    drawn = scene(n - lying, lying, side(n), seed)
                    knows = observers(n - lying, lying, 3 * (n - lying) // 8, seed)
                    metrics = blocklists(n - lying, lying, config.ticks)(knows, drawn.places)
                    done = np.asarray(metrics["complete"]) == 1
                    ticks = done.argmax() if done.any() else np.inf
                    each.append((ticks, drawn.diameter))
            return np.array(each, float).reshape(len(config.sizes), -1, 2)

        found[law] = stage(f"fixed {law}", timed)
        for n, row in zip(config.sizes, found[law], strict=True):
            report.row(
                f"fixed {law}",
                f"{n} robots, fixed {law}",
                None,
                ticks=row[:, 0],
                least=row[:, 0].min(),
                most=row[:, 0].max(),
                diameter=row[:, 1],
            )
    late = np.concatenate([(row[..., 0] - row[..., 1]).ravel() for row in found.values()])
    report.claim(
        "all block all liars within the diameter + 2 ticks (each scene)",
        np.all(late <= 2),
        float(late.max()),
        2,
    )
    area, density = (found[law][..., 0].mean(1) for law in ("area", "density"))
    report.claim(
        "at fixed area a larger swarm is no slower (mean ticks by size)",
        area[-1] <= area[0] + 0.5,
        area.tolist(),
        "not rising",
    )
    growth = np.log(density[-1] / density[0]) / np.log(config.sizes[-1] / config.sizes[0])
    report.claim(
        "at fixed density ticks grow about as the root of the number (exponent)",
        0.25 <= growth <= 0.75,
        float(growth),
        0.5,
    )
    return report.summary({"dbp_sizes": _sizes_figure(config, found)})


def three_applications(config: Config, stage: Stage = in_memory) -> Summary:
    """Tracking, time synchronisation and localisation by swarms of the paper's sizes."""
    report = Report()
    seeds = range(config.seed, config.seed + config.swarm_seeds)
    curves: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for name, task in moving(config.share).items():
        lying = int(task.members.sum())
        rules: dict[str, tuple[str, int]] = {"DBP": ("DBP", 0), "believing": ("believing", 0)}
        if name != "localisation":
            some = max(1, lying * 15 // 100 if name == "tracking" else lying * 2 // 9)
            rules |= {f"W-MSR, F = {f}": ("W-MSR", f) for f in (lying, some)}
        curves[name] = {}
        for rule, (kind, tolerated) in rules.items():
            found = stage(
                f"{name}, {rule}",
                lambda task=task, kind=kind, f=tolerated: runs(
                    swarm(task, kind, f), len(task.members), config.swarm_ticks, seeds
                ),
            )
            curves[name][rule] = found
            tail = np.nanmean(found["error"][:, -100:], axis=1)
            columns = {
                key: found[key][:, -1] for key in ("blocked_byzantine", "unjust") if key in found
            }
            report.row(
                f"{name}: {len(task.members)} robots, {lying} of them Byzantine, error in {task.unit}",
                f"{name}, {rule}",
                None,
                error=tail,
                std=tail.std(),
                valid=found["valid"][:, -1],
                **columns,
            )
    for name, rules_of in curves.items():
        _claims_of_swarm(report, name, rules_of)
    return report.summary({"dbp": _swarms_figure(curves)})


def _claims_of_swarm(report: Report, name: str, found: dict[str, dict[str, np.ndarray]]) -> None:
    own, others = found["DBP"], [found[rule] for rule in found if rule != "DBP"]
    done = (own["complete"] == 1) & (own["agree"] == 1)
    first = [int(row.argmax()) if row.any() else None for row in done]
    report.claim(
        f"{name}: every cooperative robot blocks every liar, and all have one blocklist (first tick)",
        np.all(done.any(1)),
        first,
        PAPER[name],
    )
    report.claim(
        f"{name}: no cooperative robot ever accuses another (accusations)",
        own["unjust"].max() == 0,
        float(own["unjust"].max()),
        0,
    )
    mine = np.nanmean(own["error"][:, -100:], axis=1)
    best = np.min([np.nanmean(other["error"][:, -100:], axis=1) for other in others], axis=0)
    report.claim(
        f"{name}: in the end every other rule has more than twice its error (each seed)",
        np.all(2 * mine < best),
        mine.tolist(),
        best.tolist(),
    )


def _errors_figure(blocked: dict[int, dict[str, np.ndarray]], errors: np.ndarray) -> Any:
    with figure(7.0, 3.6) as (drawn, axes):
        names = ["linear", *(f"W-MSR\nF = {f}" for f in LEFT_OUT[1:])]
        names = [f"{name}\n15 obs." for name in names]
        names += [f"DBP\n{count} obs." for count in OBSERVERS]
        each = [*errors.T, *(blocked[count]["error"] for count in OBSERVERS)]
        for place, values in enumerate(each):
            axes.bar(place, values.mean(), 0.7, color="C0")
            axes.plot([place] * len(values), values, "k.", markersize=4)
            axes.annotate(
                f"{values.mean():.4g}",
                (place, values.max()),
                (0, 4),
                ha="center",
                textcoords="offset points",
            )
        place = len(LEFT_OUT) + OBSERVERS.index(LYING)
        axes.annotate(
            "32 of 40 robots\nknow nothing", (place, 8), ha="center", va="bottom", fontsize=8
        )
        axes.set_xticks(range(len(names)), names)
        axes.set(ylabel="mean error of the estimate")
        axes.grid(axis="x", visible=False)
    return drawn


def _sizes_figure(config: Config, found: dict[str, np.ndarray]) -> Any:
    top = 1 + max(rows.max() for rows in found.values())
    with figure(7.0, 3.4, ncols=2, sharey=True) as (drawn, axes):
        for panel, (law, rows) in zip(axes, found.items(), strict=True):
            for place, (label, style) in enumerate((("ticks", "o-"), ("diameter", "s--"))):
                values = rows[..., place]
                spread = np.abs(np.stack([values.min(1), values.max(1)]) - values.mean(1))
                panel.errorbar(
                    config.sizes, values.mean(1), spread, fmt=style, capsize=3, label=label
                )
            panel.set(
                xscale="log",
                xlabel="robots",
                title=f"fixed {law}",
                ylim=(0, top),
            )
            panel.set_xticks(config.sizes, [f"{n}" for n in config.sizes])
            panel.minorticks_off()
        axes[0].set_ylabel("until all block all liars")
        axes[0].legend()
    return drawn


def _swarms_figure(curves: dict[str, dict[str, dict[str, np.ndarray]]]) -> Any:
    units = {name: task.unit for name, task in moving(1.0).items()}
    with figure(11.0, 4.6, ncols=len(curves)) as (drawn, axes):
        for panel, (name, rules) in zip(axes, curves.items(), strict=True):
            own = looks(rules)
            for rule, found in rules.items():
                middle, *band = np.maximum(
                    np.nanquantile(found["error"], (0.5, 0.0, 1.0), axis=0), 1e-3
                )
                ticks = np.arange(1, len(middle) + 1)
                curve(panel, ticks, middle[None], own[rule], rule, band=np.stack(band))
            done = (rules["DBP"]["complete"] == 1).all(0)
            if done.any():
                first = 1 + done.argmax()
                panel.axvline(first, color="k", linewidth=0.8, label="all liars blocked by DBP")
            panel.set(
                xscale="log",
                yscale="log",
                xlabel="tick",
                title=name,
                ylabel=f"mean error, {units[name]}",
            )
            panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.0, -0.2))
    return drawn


STUDY = Study(
    Config,
    (
        Part("few observers", few_observers, needs=()),
        Part("sizes", swarm_sizes, needs=()),
        Part("applications", three_applications, needs=()),
    ),
    quick=Config(seeds=1, sizes=(48, 96), share=0.2, swarm_seeds=1, swarm_ticks=200),
    seconds=280,
    pictures=(
        Picture(
            name="dbp",
            file="dbp.png",
            claim=(
                "Swarms of 195 to 300 robots block every liar by their accusations, and "
                "are then 4 to 300 times as exact as robots that believe everything."
            ),
            data="simulated swarms of 300, 195 and 250 robots, of which 100, 45 and 50 lie",
            bands=(
                "curves and bands: median, least and largest of {config.swarm_seeds} seeds of "
                "the mean error of robots that have an estimate; no curve where none has one"
            ),
        ),
        Picture(
            name="dbp_observers",
            file="dbp_observers.png",
            claim=(
                "Blocklists need one observer more than there are liars, and then make no"
                " error at all."
            ),
            data="simulated: 40 robots, 8 liars that claim -50, the truth is 10",
            bands="bars: means, dots: each of {config.seeds} seeds",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
