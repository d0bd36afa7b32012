"""DDM on Fashion-MNIST's latents with networks that are too small: ensemble against monolith."""

import functools
from typing import Any

import jax
import numpy as np

from dflax import experts as ex
from experiments.studies.experts import _ddm_figures as figures
from experiments.studies.experts._ddm_samplers import Generators, all_together, on_the_way
from experiments.studies.experts._ddm_settings import Config, seeds
from experiments.tasks import generation
from experiments.tasks.generation import Routers, Task, Trainer, distance
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Summary

RULES = ("full", "top-1", "top-2", "sample")
# Hidden layers up to this width are short of capacity for 60,000 examples.
LIMITED = 32
AHEAD = (
    "on Fashion-MNIST's latents the full ensemble of {width}-wide experts is closer than the monolith "
    "of equal operations in training, the router's among them, on every seed"
)
SHRINKS = (
    "the monolith's distance over the full ensemble's is smaller at width {last} than at width "
    "{first}, every seed"
)
TOP = "top-1 is further than the full ensemble at every width and seed, unlike in the paper"
UNEVEN = (
    "with top-1 the experts' weights at the last step are more than twice as far from the clusters' "
    "sizes as with the full ensemble, every width and seed"
)


class OnFashion:
    """What is trained and drawn on Fashion-MNIST's latents by networks of one width.

    The monolith takes as many steps more as the router costs in training.

    Args:
      config: the study's.
      task: the latents.
      width: of experts and monolith.
      partitions: of each seed.
    """

    def __init__(self, config: Config, task: Task, width: int, partitions: list[np.ndarray]):
        self.config, self.task, self.partitions = config, task, partitions
        self.trainer = Trainer(task, width, 256, config.fashion_steps, 0.999)
        self.routers = Routers(task, config.fashion_experts, 64, config.router_steps)
        self.makers = Generators(self.trainer, self.routers, config.samples)
        self.parts = self.trainer.sources(partitions, config.fashion_experts)
        self.costs = self.makers.costs(self.parts, RULES)
        # The full ensemble is all experts and the router.
        expert = self.costs["monolith"]
        router = self.costs["full"] - config.fashion_experts * expert
        more = config.router_steps * router / expert
        steps = config.fashion_steps + 10 * round(more / 10)
        self.single = Trainer(task, width, 256, steps, 0.999)
        self.whole = self.single.sources([np.zeros(len(task.features), int)], 1)

    def measured(self, place: int) -> dict[str, Any]:
        """Distances, loads, and ten samples of each method."""
        makers, labels = self.makers, self.partitions[place]
        key = jax.random.key(self.config.seed + place)
        one = jax.tree.map(lambda leaf: leaf[0], self.single.experts(self.whole, 0, key))
        drawn, loads = {"monolith": makers.alone(one, key)}, {}
        params = self.trainer.experts(self.parts, place, key)
        own = self.routers.source(labels, all_together(labels), 256, 10)
        router = self.routers.trained(own, key)
        for rule in RULES:
            drawn[rule], load = makers.together(rule, params, router, key)
            loads[rule] = on_the_way(load, labels)
        drawn["one expert alone"] = makers.alone(jax.tree.map(lambda leaf: leaf[0], params), key)
        far = {name: distance(self.task, samples) for name, samples in drawn.items()}
        shown = {name: samples[:10] for name, samples in drawn.items()}
        return {"far": far, "loads": loads, "drawn": shown}


def on_fashion(config: Config, stage: Stage = in_memory) -> Summary:
    """Monolith and experts at equal operations, on 60,000 examples, at widths that are too small."""
    task = generation.fashion_latents(config.latents)

    def clustered() -> list[np.ndarray]:
        return [
            ex.clusters(task.features[::4], config.fashion_experts, seed=s, fine=128).assign(
                task.features
            )
            for s in seeds(config)
        ]

    partitions = stage("Fashion-MNIST, clusters", clustered)
    report, columns, shown, apart = Report(), {}, {}, {}
    for width in config.widths:
        work = OnFashion(config, task, width, partitions)
        results = [
            stage(f"width {width}, seed {seed}", functools.partial(work.measured, place))
            for place, seed in enumerate(seeds(config))
        ]
        shown[width] = results[0]["drawn"]
        for name in results[0]["far"]:
            values = np.array([float(found["far"][name]) for found in results])
            columns[width, name] = values
            counted: dict[str, Any] = {}
            if name in work.costs:
                counted["kFLOP"] = work.costs[name] / 1e3
            if name in RULES:
                of_rule = [found["loads"][name] for found in results]
                for key in ("apart", "busiest_first", "entropy_half"):
                    counted[key] = np.array([float(load[key]) for load in of_rule])
                apart[width, name] = counted["apart"]
            title = f"{name}, width {width}"
            report.row(f"width {width}", title, None, frechet=values, std=values.std(), **counted)
    claims(config, report, columns, apart)
    again = np.random.default_rng(config.seed).integers(len(task.features), size=config.samples)
    floor = distance(task, np.asarray(task.data.inputs[again]))
    report.row("data", "latents drawn again", None, frechet=floor)
    return report.summary({"ddm_fashion": figures.on_fashion(task, columns, shown)})


def claims(
    config: Config, report: Report, columns: dict[Any, np.ndarray], apart: dict[Any, np.ndarray]
) -> None:
    """Where the ensemble is ahead of the monolith, and what top-1 does."""
    full, monolith = (
        np.array([columns[width, name] for width in config.widths]) for name in ("full", "monolith")
    )
    for place, width in enumerate(config.widths):
        if width <= LIMITED:
            report.claim(
                AHEAD.format(width=width),
                np.all(full[place] < monolith[place]),
                full[place].tolist(),
                monolith[place].tolist(),
            )
    ratio = dict(zip(config.widths, monolith / full, strict=True))
    first, last = _limits(config)
    report.claim(
        SHRINKS.format(first=first, last=last),
        np.all(ratio[last] < ratio[first]),
        ratio[last].tolist(),
        ratio[first].tolist(),
    )
    top = np.array([columns[width, "top-1"] for width in config.widths])
    report.claim(TOP, np.all(top > full), top.mean(1).tolist(), full.mean(1).tolist())
    far, near = (np.array([apart[w, name] for w in config.widths]) for name in ("top-1", "full"))
    report.claim(UNEVEN, np.all(far > 2 * near), far.mean(1).tolist(), near.mean(1).tolist())


def _limits(config: Config) -> tuple[int, int]:
    """The widest networks that are short of capacity, and the widest of all."""
    return max(w for w in config.widths if w <= LIMITED), max(config.widths)


def fashion_statements(config: Config) -> list[str]:
    """What the part on Fashion-MNIST claims."""
    first, last = _limits(config)
    return [
        *(AHEAD.format(width=width) for width in config.widths if width <= LIMITED),
        SHRINKS.format(first=first, last=last),
        TOP,
        UNEVEN,
    ]
