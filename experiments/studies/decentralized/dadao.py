"""DADAO and four other ways to the common minimiser, on five graphs: gradients and communications."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import dflax as dx
from dflax.decentralized import adom_plus, continuized, dadao, gossip_steps, msda, unit_rates
from dflax.local.convex.conjugate import least_squares_conjugate
from dflax.topology import GossipRates, Graph, geometric, optimal_rates, switching, uniform_rates
from experiments.tasks.dadao_runs import (
    Cost,
    Problems,
    barbell,
    events,
    grid,
    loss,
    problems,
    rounds,
)
from experiments.tasks.inputs import REGRESSION
from experiments.tools.command import main
from experiments.tools.figures import bars, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Picture, Study, Summary


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison.

    Attributes:
      nodes: n, an even square.
      dimension: d of the regression.
      samples: rows of data at each node.
      target: stop when the mean squared error is this share of |x*|^2.
      horizon: units of time for which DADAO's events are drawn.
      rounds: most rounds of ADOM+; with multi-consensus and for MSDA a small part of it will do.
      turns: random geometric graphs that take turns.
      batch_size: B of the stochastic gradients, drawn with replacement.
      seeds: repetitions, each with data, starts and events of its own.
      seed: of the first.
    """

    nodes: int = 16
    dimension: int = 5
    samples: int = 100
    target: float = 1e-6
    horizon: float = 170.0
    rounds: int = 13000
    turns: int = 50
    batch_size: int = 10
    seeds: int = 3
    seed: int = 0


def every_graph(config: Config, stage: Stage = in_memory) -> Summary:
    """Runs everything in float64."""
    with jax.enable_x64(True):
        return _every_graph(config, stage)


def _every_graph(config: Config, stage: Stage) -> Summary:
    n = config.nodes
    problem = problems(config)
    graphs = {
        "star": dx.topology.star(n),
        "path": dx.topology.path(n),
        "grid": grid(n),
        "complete": dx.topology.complete(n),
        "barbell": barbell(n),
    }
    costs: dict[str, dict[str, Cost]] = {}
    totals: dict[str, float] = {}
    decays: dict[str, np.ndarray] = {}

    def kept(name: str, run: Callable[..., Cost], *arguments: Any, **options: Any) -> Cost:
        return Cost(*stage(name, lambda: tuple(run(config, problem, *arguments, **options))))

    def asynchronous(
        rates: GossipRates,
        name: str,
        batch_size: int | None = None,
        horizon: float = config.horizon,
    ) -> Cost:
        found = kept(
            f"{name}: DADAO",
            events,
            rates,
            lambda **constants: dadao(
                loss, rates, running_mean=batch_size is not None, **constants
            ),
            count=int(horizon * (n + rates.total)),
            batch_size=batch_size,
        )
        if batch_size is not None:
            return found
        reached = found.gradients / n
        decays[name] = np.log(found.errors[:, 0] / config.target) / reached
        totals[name] = rates.total
        return found

    for name, graph in graphs.items():
        links = len(graph.links)
        chi = np.linalg.eigvalsh(dx.topology.laplacian(graph))
        chi = chi[-1] / chi[1]
        few = min(config.rounds, 500)
        repeats = max(1, math.ceil(chi * math.log(2.0) - 1e-9))

        def synchronous(
            label: str,
            messages: int,
            most: int,
            method: Any,
            *given: Any,
            graph: Graph = graph,
            **options: Any,
        ) -> Cost:
            return kept(
                label,
                rounds,
                lambda **constants: method(*given, graph, **constants, **options),
                messages=messages,
                most=most,
            )

        rows = {
            "DADAO": asynchronous(uniform_rates(graph), name),
            "ADOM+": synchronous(
                f"{name}: ADOM+", links, few if chi < 2 else config.rounds, adom_plus, loss
            ),
            "ADOM+ multi-consensus": synchronous(
                f"{name}: ADOM+ multi-consensus",
                repeats * links,
                few,
                adom_plus,
                loss,
                multi_consensus=True,
            ),
            "MSDA (dual)": synchronous(
                f"{name}: MSDA",
                gossip_steps(graph) * links,
                few // 5,
                msda,
                least_squares_conjugate,
            ),
            "continuized (dual)": kept(
                f"{name}: continuized",
                events,
                unit_rates(graph),
                lambda graph=graph, **constants: continuized(
                    least_squares_conjugate, graph, **constants
                ),
                count=3000,
                gradient_rate=0.0,
            ),
        }
        if name in ("grid", "barbell"):
            rows["DADAO, optimal rates"] = asynchronous(
                optimal_rates(graph), f"{name}, optimal rates"
            )
        costs[name] = rows
    table = _table(costs, totals)
    static = list(table)
    radius = 1.5 * math.sqrt(math.log(n) / (math.pi * n))
    changing = [geometric(n, radius, config.seed + turn) for turn in range(config.turns)]
    changes = f"{config.turns} geometric graphs"
    rates = switching([uniform_rates(graph) for graph in changing]).scaled()
    turns = {changes: {"DADAO": asynchronous(rates, changes)}}
    table |= (moving := _table(turns, totals))
    noisy = _noisy(
        {
            f"{share:g} x the time": asynchronous(
                uniform_rates(graphs["grid"]),
                f"grid, {share:g} x the time",
                batch_size=config.batch_size,
                horizon=share * config.horizon,
            )
            for share in (1, 2, 4)
        }
    )
    title = f"grid: DADAO with stochastic gradients, B = {config.batch_size}: share of |x*|^2"
    return Summary(
        table | noisy,
        _claims(config, problem, costs | turns, totals, decays),
        {"communications": _figure(costs)},
        {
            f"until the mean squared error is {config.target:g} |x*|^2": static,
            f"the same while the graph changes every {rates.dwell:.2g} units of time": list(moving),
            title: list(noisy),
        },
    )


def _table(
    costs: dict[str, dict[str, Cost]], totals: dict[str, float]
) -> dict[str, dict[str, float]]:
    table = {}
    for graph, rows in costs.items():
        for method, found in rows.items():
            table[f"{graph}: {method}"] = {
                "gradients": float(found.gradients.mean()),
                "std of gradients": float(found.gradients.std()),
                "communications": float(found.communications.mean()),
                "std of communications": float(found.communications.std()),
            }
        table[f"{graph}: DADAO"]["rate"] = totals[graph]
    return table


def _noisy(found: dict[str, Cost]) -> dict[str, dict[str, float]]:
    """Errors at the end, of the last models and of the nodes' running means."""
    return {
        name: {
            "last model": float(cost.errors[:, -1].mean()),
            "std of last": float(cost.errors[:, -1].std()),
            "running mean": float(cost.errors_of_means[:, -1].mean()),
            "std of mean": float(cost.errors_of_means[:, -1].std()),
        }
        for name, cost in found.items()
    }


def _claims(
    config: Config,
    problem: Problems,
    costs: dict[str, dict[str, Cost]],
    totals: dict[str, float],
    decays: dict[str, np.ndarray],
) -> list[Claim]:
    primal = ("ADOM+", "ADOM+ multi-consensus")
    fixed = [rows for rows in costs.values() if primal[0] in rows]
    ratios = [
        float(
            min(rows[p].communications.mean() for p in primal) / rows["DADAO"].communications.mean()
        )
        for rows in fixed
    ]
    shares = [
        float(rows["DADAO"].gradients.mean() / min(rows[p].gradients.mean() for p in primal))
        for rows in fixed
    ]
    gradients = [float(rows["DADAO"].gradients.mean()) for rows in costs.values()]
    mu, top = np.asarray(problem.strong_convexity), np.asarray(problem.smoothness)
    bound = np.sqrt(mu / top) / (8 * np.sqrt(2.0))
    slopes = [float((decay / bound).min()) for decay in decays.values()]
    cut, plain = costs["barbell"]["DADAO, optimal rates"], costs["barbell"]["DADAO"]
    saved = float(plain.communications.mean() / cut.communications.mean())
    expected = totals["barbell"] / totals["barbell, optimal rates"]
    same = float(cut.gradients.mean() / plain.gradients.mean())
    return [
        Claim(
            "DADAO needs about 10 to 30 times fewer communications than either ADOM+ (each graph)",
            all(8.0 <= ratio <= 40.0 for ratio in ratios),
            ratios,
            [10, 30],
        ),
        Claim(
            "with at most about 1.2 times the gradients of the better ADOM+ (each graph)",
            all(share <= 1.2 for share in shares),
            shares,
            1.2,
        ),
        Claim(
            "its gradients do not depend on the graph, nor on its changing (largest over smallest mean)",
            max(gradients) / min(gradients) <= 1.2,
            gradients,
            1.2,
        ),
        Claim(
            "the error falls faster than the bound in every run (least measured rate over bound)",
            all(slope >= 1.0 for slope in slopes),
            slopes,
            1.0,
        ),
        Claim(
            "optimal rates cut communications on the barbell as much as they cut the rate",
            saved >= 0.85 * expected,
            saved,
            expected,
        ),
        Claim("at equal gradients", abs(same - 1.0) <= 0.1, same, 1.0),
    ]


def _figure(costs: dict[str, dict[str, Cost]]) -> Any:
    methods = list(dict.fromkeys(method for rows in costs.values() for method in rows))
    with figure(10.0, 4.4, ncols=2) as (drawn, axes):
        for panel, what in zip(axes, ("communications", "gradients"), strict=True):
            for method, look in looks(methods).items():
                at = [g for g, rows in enumerate(costs.values()) if method in rows]
                counts = [getattr(rows[method], what) for rows in costs.values() if method in rows]
                where = np.array(at) + (look.place - 2.5) * 0.14
                label = f"{method} (grid and barbell)" if len(at) < len(costs) else method
                bars(panel, where, np.stack(counts, axis=1), look, 0.13, label)
            panel.set_xticks(range(len(costs)), list(costs))
            panel.set(yscale="log", ylabel=f"{what} until the target")
            panel.grid(axis="x", visible=False)
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


STUDY = Study(
    Config,
    (Part("every graph", every_graph, needs=(REGRESSION,)),),
    quick=Config(horizon=20.0, rounds=500, turns=3, seeds=1),
    seconds=75,
    pictures=(
        Picture(
            name="communications",
            file="dadao.png",
            claim=(
                "DADAO, which uses gradients alone, needs 10 to 30 times fewer "
                "communications than ADOM+ on every graph; dual methods, which need "
                "conjugates, less still."
            ),
            data=(
                "scikit-learn's regressions, {config.nodes} nodes with {config.samples} "
                "rows of {config.dimension} numbers each; target: a squared error of "
                "{config.target:g} |x*|^2"
            ),
            bands="bars: least to largest of {config.seeds} seeds",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
