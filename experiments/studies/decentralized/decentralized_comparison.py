"""All methods without a server on one task and budget: accuracy over rounds and megabytes, by graph."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import decentralized, topology
from experiments.tasks.gossip import CLIENTS, MEASURED, NOWHERE, Method, Task, given_matrix, graphs
from experiments.tasks.inputs import FASHION_MNIST
from experiments.tools.command import main
from experiments.tools.curves import spread
from experiments.tools.figures import curve, figure, log_megabytes, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Picture, Study, Summary

RHO = 0.05
GOSSIP_STEPS = 4
DENSITY = 0.5
SAMPLE = 4


class Setting(NamedTuple):
    """What goes with a network.

    Attributes:
      local_steps: K.
      batch_size: B.
      rounds: how long every method runs.
      every: rounds between measurements.
      target: accuracy to be reached.
      rates: of the local SGD, the best of which each method gets on each graph.
    """

    local_steps: int
    batch_size: int
    rounds: int
    every: int
    target: float
    rates: tuple[float, ...]


SETTINGS = {
    "perceptron": Setting(5, 10, 40, 4, 0.6, (0.03, 0.1, 0.3)),
    "halved": Setting(5, 10, 60, 6, 0.6, (0.03, 0.1, 0.3)),
    "small": Setting(5, 10, 30, 5, 0.6, (0.03, 0.1, 0.3)),
    "large": Setting(10, 20, 200, 10, 0.8, (0.01, 0.03, 0.1, 0.3)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; every method sees the same examples in a round, and as many of them.

    A round of a client is K steps on minibatches of B, or, for the methods that are published with one
    step per round (D-PSGD, MATCHA, DSGT), one step on all K B examples at once. MoDeST trains a quarter
    of the clients in each of its rounds, so four of these count as one. Sharpness-aware steps see two
    gradients of each example.

    DADAO, ADOM+ and MSDA are not among the methods: they solve strongly convex problems, their steps
    come from constants of strong convexity and smoothness that a network does not have. They have a
    study of their own, `dadao`.

    Attributes:
      network: a perceptron with 32 hidden units (minutes); a CNN with channels 8 and 16 on images
        averaged to half their size, "halved" (an hour on two cores), or as they are, "small" (several
        hours); or the CNN with 421,642 parameters, "large" (for an accelerator; on two cores half an
        hour to two hours for 20 rounds and rates chosen on one seed, as in the gallery).
      rounds: communication rounds; None takes those that go with the network.
      every: rounds between measurements; None takes those that go with the network.
      target: accuracy to be reached; None takes that which goes with the network.
      tuned_by: the number of seeds by which each method's rate is chosen, on its first graph; all else
        runs at that rate alone, a fraction of the time. None: all seeds, and a rate for each graph.
      alpha: Dirichlet concentration of the label split.
      seeds: splits, starts and minibatches, paired over methods and rates.
      seed: the first of them.
    """

    network: Literal["perceptron", "halved", "small", "large"] = "perceptron"
    rounds: int | None = None
    every: int | None = None
    target: float | None = None
    tuned_by: int | None = None
    alpha: float = 0.3
    seeds: int = 3
    seed: int = 0


def methods(task: Task) -> dict[str, list[Method]]:
    """Every method as a function of the graph and the local rate, all else as its paper has it.

    Of most one program serves all graphs; one whose program depends on the graph stands there once for
    each.

    D-PSGD and MATCHA mix after their step, so that all models are measured right after gossip; all but
    DisPFL's, which are their owners', and DIMAT's. DIMAT matches by weights and is for networks that
    were trained apart: it begins to merge after a quarter of the rounds, on the two graphs that it was
    published for. MATCHA takes part where its base graph is undirected; the partners of single merging
    and the samples of MoDeST come from no graph.
    """
    d, loss, sgd, mixed = decentralized, task.loss, optax.sgd, given_matrix
    matrices = {name: matrix.dense().astype(np.float32) for name, matrix in graphs().items()}
    schedule, matchings = matcha_tables(budget=0.5)
    last = d.Order.ADAPT_THEN_COMBINE

    def corrected(w: Any) -> dx.gossip.Mixer:
        others = (w - w[0, 0] * jnp.eye(CLIENTS)) / (1.0 - w[0, 0])
        return dx.gossip.variance_corrected(mixed(others), w[0, 0])

    def matched(tables: Any) -> dx.gossip.Mixer:
        return dx.gossip.mixer(schedule._replace(tables=tables))

    def merging(graph: str, mixer: dx.gossip.Mixer) -> Method:
        late = from_round(mixer, task.rounds // 4)
        return Method(
            lambda _, rate: d.dfedavg(loss, sgd(rate), late, order=d.Order.COMBINE_THEN_ADAPT),
            {graph: ()},
            own_starts=True,
        )

    by_weights = dx.matching.by_weights(task.symmetries)
    matched_on = {
        "ring": dx.gossip.aligned(graphs()["ring"], by_weights),
        # As its code has it there, everyone is matched to one client.
        "complete": dx.gossip.anchored(dx.gossip.complete(CLIENTS), by_weights, broadcast=False),
    }
    sam: dict[str, Any] = {"radius": RHO}
    over_graphs = {
        "D-PSGD": Method(
            lambda w, rate: d.dpsgd(loss, sgd(rate), mixed(w), order=last), matrices, one_step=True
        ),
        "MATCHA": Method(
            lambda w, rate: d.dpsgd(loss, sgd(rate), matched(w), order=last),
            matchings,
            one_step=True,
        ),
        "DSGT": Method(
            lambda w, rate: d.dsgt(loss, rate, mixed(w)),
            matrices,
            one_step=True,
        ),
        "DFedAvg": Method(lambda w, rate: d.dfedavg(loss, sgd(rate), mixed(w)), matrices),
        "DFedAvgM": Method(
            lambda w, rate: d.dfedavg(loss, sgd(rate, momentum=0.9), mixed(w)), matrices
        ),
        "variance corrected": Method(
            lambda w, rate: d.dfedavg(loss, sgd(rate), corrected(w)),
            matrices,
            own_starts=True,
        ),
        "DFedSAM": Method(lambda w, rate: d.dfedsam(loss, sgd(rate), mixed(w), **sam), matrices),
        "DFedSAM-MGS": Method(
            lambda w, rate: d.dfedsam(loss, sgd(rate), mixed(w), gossip_steps=GOSSIP_STEPS, **sam),
            matrices,
        ),
        "DFedADMM": Method(lambda w, rate: d.dfedadmm(loss, sgd(rate), mixed(w)), matrices),
        "DFedADMM-SAM": Method(
            lambda w, rate: d.dfedadmm_sam(loss, sgd(rate), mixed(w), **sam), matrices
        ),
        "DisPFL": Method(
            lambda w, rate: d.dispfl(
                loss, sgd(rate), mixed(w), rounds=task.rounds, density=DENSITY
            ),
            matrices,
        ),
        "single merging": Method(
            lambda _, rate: d.single_merging(loss, sgd(rate), CLIENTS, 0.2),
            {NOWHERE: ()},
            merges=True,
        ),
        "MoDeST": Method(
            lambda _, rate: d.modest(loss, sgd(rate), clients=CLIENTS, sample=SAMPLE),
            {NOWHERE: ()},
            more_rounds=CLIENTS // SAMPLE,
            models=lambda state: state.server.models,
        ),
    }
    return {name: [method] for name, method in over_graphs.items()} | {
        "DIMAT": [merging(graph, mixer) for graph, mixer in matched_on.items()]
    }


def from_round(mixer: dx.gossip.Mixer, first: int) -> dx.gossip.Mixer:
    """Mixes from a round on; until then everyone stays alone."""

    def apply(models: Any, state: Any, mixing: dx.gossip.Mixing) -> Any:
        def mix() -> Any:
            return mixer.apply(models, state, mixing)

        metrics = jax.eval_shape(mix)[2]
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics)
        return jax.lax.cond(mixing.index < first, lambda: (models, state, none), mix)

    return mixer._replace(apply=apply)


def matcha_tables(budget: float) -> tuple[topology.Schedule, dict[str, Any]]:
    """MATCHA's schedule, and its tables for two base graphs, as many matchings in each."""
    schedules = {
        name: topology.matcha(graph(CLIENTS), budget)
        for name, graph in (("ring", topology.ring), ("complete", topology.complete))
    }
    most = max(schedule.tables[0].shape[1] for schedule in schedules.values())
    nobody = np.arange(CLIENTS, dtype=np.int32)[:, None]
    tables = {}
    for name, schedule in schedules.items():
        partners, probabilities, step = schedule.tables
        missing = most - len(probabilities)
        tables[name] = (
            np.concatenate([partners, np.repeat(nobody, missing, 1)], 1),
            np.concatenate([probabilities, np.zeros(missing)]).astype(np.float32),
            np.float32(step),
        )
    return schedules["ring"], tables


class Found(NamedTuple):
    """A method on one graph, at its best rate.

    Attributes:
      rate: whose models were best at the end, mean over seeds.
      curves: of `MEASURED`, `[S, E]`.
      delivers: which accuracy is the method's: "local", or "averaged" of one that merges.
    """

    rate: float
    curves: dict[str, np.ndarray]
    delivers: str

    @property
    def accuracy(self) -> np.ndarray:
        """Of what the method delivers, `[S, E]`."""
        return self.curves[self.delivers]

    def final(self, name: str) -> np.ndarray:
        """The last measurement, `[S]`."""
        return self.curves[name][:, -1]


def every_method(config: Config, stage: Stage = in_memory) -> Summary:
    """Sweeps the rate for each method on each graph and reports each method at its best."""
    setting = SETTINGS[config.network]
    setting = setting._replace(
        rounds=config.rounds or setting.rounds,
        every=config.every or setting.every,
        target=config.target or setting.target,
    )

    def compared(seeds: int) -> tuple[Task, list[tuple[str, Method]]]:
        task = Task(
            config.network,
            range(config.seed, config.seed + seeds),
            alpha=config.alpha,
            local_steps=setting.local_steps,
            batch_size=setting.batch_size,
            rounds=setting.rounds,
            every=setting.every,
        )
        return task, [(name, one) for name, several in methods(task).items() for one in several]

    task, every = compared(config.seeds)
    few = None if config.tuned_by is None else compared(config.tuned_by)
    rates = setting.rates
    found: dict[tuple[str, str], Found] = {}
    for number, (name, method) in enumerate(every):
        delivers = "averaged" if method.merges else "local"
        if few is not None:
            first, table = next(iter(method.tables.items()))
            alone = few[1][number][1]._replace(tables={first: table})
            before = stage(
                f"{name}, {first}, its rate",
                lambda alone=alone: few[0].curves(alone, setting.rates),
            )
            best = int(before[MEASURED.index(delivers), 0, :, :, -1].mean(1).argmax())
            rates = setting.rates[best : best + 1]
        swept = stage(
            f"{name}, {', '.join(method.tables)}",
            lambda method=method, rates=rates: task.curves(method, rates),
        )
        for place, graph in enumerate(method.tables):
            last = swept[MEASURED.index(delivers), place, :, :, -1]
            best = int(last.mean(1).argmax())
            curves = dict(zip(MEASURED, swept[:, place, best], strict=True))
            found[name, graph] = Found(rates[best], curves, delivers)
            print(f"{name}, {graph}: {last.mean(1).round(3)} at {rates}", flush=True)
    rows = {f"{name}, {graph}": row(own, setting) for (name, graph), own in found.items()}
    return Summary(rows, claims(found), {"comparison": comparison_figure(found, setting)})


def row(own: Found, setting: Setting) -> dict[str, Any]:
    """What the table shows of a method on a graph."""
    reaches = np.asarray(own.accuracy >= setting.target)
    first, reached = reaches.argmax(1), reaches.any(1)
    spent = np.take_along_axis(own.curves["megabytes"], first[:, None], 1)[:, 0]
    missing = f"{int(reached.sum())} of {len(own.accuracy)} did"
    return {
        "rate": own.rate,
        "local": spread(own.final("local")),
        "averaged": spread(own.final("averaged")),
        "distance": float(own.final("distance").mean()),
        f"rounds to {setting.target:g}": (
            spread(setting.every * (first + 1.0), 0) if reached.all() else missing
        ),
        f"MB to {setting.target:g}": spread(spent, 1) if reached.all() else missing,
        "MB in all": float(own.final("megabytes").mean()),
    }


def claims(found: dict[tuple[str, str], Found]) -> list[Claim]:
    """What the methods' papers say of each other and of graphs, as far as it can be seen here."""
    order = list(graphs())

    def final(name: str, graph: str, which: str = "local") -> np.ndarray:
        return found[name, graph].final(which)

    def numbers(values: np.ndarray) -> list[float]:
        return [float(values.mean()), float(values.std())]

    stated = []
    for name in ("D-PSGD", "DSGT", "DFedAvg", "DFedAvgM", "DFedSAM"):
        over = [float(final(name, graph).mean()) for graph in order]
        stated.append(
            Claim(
                f"{name}: local models get better with the spectral gap over {', '.join(order)}",
                bool(np.all(np.diff(over) > 0)),
                over,
                [topology.spectral_gap(matrix) for matrix in graphs().values()],
            )
        )
    apart = max(
        float(np.abs(final(name, "complete") - final(name, "complete", "averaged")).max())
        for name in ("D-PSGD", "DFedAvg", "DFedAvgM", "DFedSAM", "DFedSAM-MGS", "DFedADMM")
    )
    several = final("DFedSAM-MGS", "ring") - final("DFedSAM", "ring")
    sooner = {graph: final("DFedAvg", graph) - final("D-PSGD", graph) for graph in order}
    tracked = final("DSGT", "ring") - final("D-PSGD", "ring")
    dual = final("DFedADMM", "complete") - final("DFedAvg", "complete")
    share = {
        graph: float(
            found["MATCHA", graph].final("megabytes").mean()
            / found["D-PSGD", graph].final("megabytes").mean()
        )
        for graph in ("ring", "complete")
    }
    sparse = final("D-PSGD", "complete", "averaged") - final("MATCHA", "complete", "averaged")
    gain = final("single merging", NOWHERE, "averaged") - final("single merging", NOWHERE)
    behind = [float((final("DFedAvg", g) - final("variance corrected", g)).mean()) for g in order]
    worst = min(found, key=lambda key: found[key].accuracy[:, -1].mean())
    least = float(found[worst].accuracy[:, -1].mean())
    return [
        *stated,
        Claim(
            "on the complete graph all local models are the averaged one after gossip",
            apart <= 0.002,
            apart,
            0.002,
        ),
        Claim(
            f"{GOSSIP_STEPS} gossip steps beat one on the ring, every seed (DFedSAM-MGS, DFedSAM)",
            bool((several > 0).all()),
            numbers(several),
            0.0,
        ),
        Claim(
            "K steps beat one on the same examples at the same traffic, every graph and seed "
            "(DFedAvg, D-PSGD)",
            bool(min(gap.min() for gap in sooner.values()) > 0),
            [float(gap.mean()) for gap in sooner.values()],
            0.0,
        ),
        Claim(
            "on the ring tracking the mean gradient beats following one's own (DSGT, D-PSGD)",
            bool(tracked.mean() > 0),
            numbers(tracked),
            0.0,
        ),
        Claim(
            "on the complete graph DFedADMM ends above DFedAvg, every seed",
            bool((dual > 0).all()),
            numbers(dual),
            0.0,
        ),
        Claim(
            "MATCHA sends about half as much as D-PSGD on the same graph",
            bool(all(0.45 <= value <= 0.55 for value in share.values())),
            list(share.values()),
            0.5,
        ),
        Claim(
            "on the complete graph that costs its averaged model at most 0.03",
            bool(sparse.mean() <= 0.03),
            numbers(sparse),
            0.03,
        ),
        Claim(
            "single merging: the one merge gains at least 0.1, every seed",
            bool((gain >= 0.1).all()),
            numbers(gain),
            0.1,
        ),
        Claim(
            "from starts of their own variance-corrected models end within 0.05 of DFedAvg's from "
            "one start, every graph",
            max(behind) <= 0.05,
            behind,
            0.05,
        ),
        Claim("every method learns; the worst", least > 0.3, [", ".join(worst), least], 0.3),
    ]


def statements(config: Config) -> list[str]:
    """What is claimed, whatever the numbers."""
    blank = Found(0.0, dict.fromkeys(MEASURED, np.ones((1, 1))), "local")
    places = [(name, graph) for name in LOOKS for graph in (*graphs(), NOWHERE)]
    return [claim.claim for claim in claims(dict.fromkeys(places, blank))]


# Families share a colour; marks tell all methods apart.
COLOURS = {
    "D-PSGD": "0.35",
    "MATCHA": "0.35",
    "DSGT": "0.35",
    "DFedAvg": "C0",
    "DFedAvgM": "C0",
    "variance corrected": "C0",
    "DFedSAM": "C1",
    "DFedSAM-MGS": "C1",
    "DFedADMM": "C2",
    "DFedADMM-SAM": "C2",
    "DisPFL": "C4",
    "DIMAT": "C6",
    "single merging": "C3",
    "MoDeST": "C5",
}
LOOKS = {name: look._replace(color=COLOURS[name]) for name, look in looks(COLOURS).items()}


def comparison_figure(found: dict[tuple[str, str], Found], setting: Setting) -> Any:
    """Over rounds and megabytes on the ring, and at the end on every graph, in the same colours."""
    from matplotlib.lines import Line2D

    best: dict[str, float] = {}
    for (name, _), own in found.items():
        best[name] = max(best.get(name, 0.0), float(own.accuracy[:, -1].mean()))
    order = sorted(best, key=lambda name: best[name])
    marks = {"ring": "o", "exponential": "s", "complete": "D", NOWHERE: "*"}
    with figure(12.0, 5.4, ncols=3, width_ratios=(1, 1, 1.1)) as (drawn, axes):
        for place, name in enumerate(order):
            color = COLOURS[name]
            own = found[name, "ring" if (name, "ring") in found else NOWHERE]
            rounds = setting.every * (1 + np.arange(own.accuracy.shape[1]))
            middle, spread = own.accuracy.mean(0), own.accuracy.std(0)
            band = np.stack([middle - spread, middle + spread])
            for panel, xs in ((axes[0], rounds), (axes[1], own.curves["megabytes"].mean(0))):
                curve(panel, xs, own.accuracy, LOOKS[name], name, band=band, linewidth=1.5)
            for graph, mark in marks.items():
                if (name, graph) in found:
                    last = found[name, graph].accuracy[:, -1]
                    axes[2].errorbar(
                        last.mean(),
                        place,
                        xerr=last.std(),
                        fmt=mark,
                        color=color,
                        capsize=2,
                        markersize=9 if mark == "*" else 6,
                    )
        axes[0].set(xlabel="round, on the ring", ylabel="test accuracy of what a method delivers")
        log_megabytes(axes[1], "megabytes sent per client, on the ring")
        axes[1].sharey(axes[0])
        axes[1].set_ylabel("test accuracy of what a method delivers")
        axes[2].set_yticks(range(len(order)), order)
        for tick, name in zip(axes[2].get_yticklabels(), order, strict=True):
            tick.set_color(COLOURS[name])
        axes[2].set(xlabel="test accuracy at the end")
        axes[2].legend(
            [Line2D([], [], color="0.3", marker=mark, linestyle="") for mark in marks.values()],
            [*list(marks)[:-1], "no graph"],
            loc="lower center",
            bbox_to_anchor=(0.4, 1.0),
            ncols=4,
            columnspacing=1.0,
            handletextpad=0.2,
        )
        lines, labels = axes[0].get_legend_handles_labels()
        drawn.legend(lines[::-1], labels[::-1], loc="outside lower center", ncols=7)
    return drawn


STUDY = Study(
    Config,
    (Part("every method", every_method, needs=(FASHION_MNIST,), states=statements),),
    quick=Config(rounds=8, seeds=1),
    pictures=(
        Picture(
            name="comparison",
            file="decentralized_comparison.png",
            claim=(
                "Fourteen methods without a server on the CNN with 421,642 parameters, 20 rounds, "
                "rates chosen of four on one seed: K local steps reach 0.72 to 0.79 where one step "
                "on the same examples reaches 0.47 to 0.57 (DFedAvg, D-PSGD); denser graphs, or "
                "four gossip steps on the ring, buy accuracy with megabytes; MoDeST's sampled "
                "aggregators get most."
            ),
            data="Fashion-MNIST, network: {config.network}, 16 clients, Dirichlet {config.alpha:g}",
            bands="bands and bars: one standard deviation of {config.seeds} seeds",
            flags="--network large --rounds 20 --every 4 --tuned-by 1 --target 0.7",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
