"""MoDeST on 100 nodes: federated averaging without a server, while nodes crash, join and fall silent."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from experiments.studies.decentralized._modest_figures import (
    cost_figure,
    silence_figure,
    spread_figure,
)
from experiments.studies.decentralized._modest_silence import ageing, crashed, deaths, mostly_absent
from experiments.tasks.inputs import DIGITS
from experiments.tasks.modest_runs import Found, Runs, crashes, few, given_cohorts
from experiments.tools.command import main
from experiments.tools.curves import first_round
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Part, Picture, Study, Summary

NEVER = 1 << 20
KINDS = ("model", "view", "ping")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      nodes: n, on scikit-learn's digits.
      alpha: Dirichlet concentration of the label split.
      sample: s, participants of a round.
      rounds: of the comparison with D-SGD and of deaths and joins.
      crash_rounds: of the runs in which four nodes in five fall silent.
      local_steps: K.
      batch_size: B, drawn with replacement.
      learning_rate: of the local SGD.
      target: accuracy whose cost is counted.
      seeds: repetitions.
      seed: of the first.
    """

    nodes: int = 100
    alpha: float = 1.0
    sample: int = 10
    rounds: int = 150
    crash_rounds: int = 200
    local_steps: int = 5
    batch_size: int = 20
    learning_rate: float = 0.1
    target: float = 0.85
    seeds: int = 3
    seed: int = 11


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """Runs all experiments of the sheet."""
    runs = Runs(
        nodes=config.nodes,
        alpha=config.alpha,
        sample=config.sample,
        local_steps=config.local_steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        rounds=max(config.rounds, config.crash_rounds),
        seeds=config.seeds,
        seed=config.seed,
    )
    report = Report()
    silence = runs.silence(config.crash_rounds)
    shape = config.nodes, config.crash_rounds, config.seeds, config.seed
    everyone = jnp.ones((config.seeds, config.crash_rounds, config.nodes), bool)
    crashing, present = (jnp.asarray(table(*shape)) for table in (crashes, few))
    deltas = {"20": 20, "50": 50, "inf": NEVER}

    def silent(who: str, tables: Any) -> dict[str, Found]:
        return {
            name: stage(
                f"{who}, delta = {name}",
                lambda delta=delta: silence(tables, jnp.int32(delta))[1],
            )
            for name, delta in deltas.items()
        }

    there = silent("everyone there", everyone)
    crash, rare = silent("crashes", crashing), silent("few there", present)
    curves = everyone_there(config, runs, there["inf"], report, stage)
    what_is_sent(
        config, {"everyone there": there["inf"], "after the crashes": crash["inf"]}, report
    )
    ageing(config, there, report)
    crashed(config, crash, report)
    mostly_absent(config, rare, report)
    deaths(config, runs, report, stage)
    known = joins(config, runs, report, stage)
    figures = {
        "modest": cost_figure(curves),
        "silence": silence_figure(crash, {"crash": crash, "few": rare}, config.nodes),
        "spread": spread_figure(there, known, config.nodes),
    }
    return report.summary(figures)


def everyone_there(
    config: Config, runs: Runs, viewed: Found, report: Report, stage: Stage
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What a target accuracy costs; returns accuracies and megabytes sent so far, `[S, T]` each."""
    T, s, n = config.rounds, config.sample, config.nodes

    def idealised() -> Any:
        make = runs.program(lambda r: runs.modest(r, idealised=True), T, runs.at_server)
        states, found = make()
        return jax.vmap(lambda state: state.server.params)(states), found

    ideal, found = stage("idealised MoDeST", idealised)

    def federated() -> Any:
        states, averaged = runs.program(
            lambda r: dx.server.fedavg(runs.loss, runs.optimizer),
            T,
            runs.at_server,
            rule=given_cohorts,
        )(jnp.asarray(found["sampled"]))
        return states.server.params, averaged

    server, averaged = stage("FedAvg", federated)
    mixer = dx.gossip.one_peer_exponential(n)
    without_server = {
        "D-SGD": lambda r: dx.decentralized.dfedavg(runs.loss, runs.optimizer, mixer),
        "gossip learning": lambda r: dx.decentralized.gossip_learning(runs.loss, runs.optimizer, n),
    }
    gossiped, wandering = (
        stage(name, lambda make=make: runs.program(make, T, runs.at_clients)()[1])
        for name, make in without_server.items()
    )
    viewed = {name: values[:, :T] for name, values in viewed.items()}
    size = runs.model_bytes
    total = sum(viewed[f"{kind}_bytes"] for kind in KINDS)
    accuracy = "test_accuracy"
    methods: dict[str, tuple[Any, Any, Any]] = {
        "MoDeST": (viewed[accuracy], viewed["models_sent"], total),
        "FedAvg": (averaged[accuracy], 2.0 * s, 2.0 * s * size),
        "D-SGD, mean local": (gossiped[accuracy], n, n * size),
        "D-SGD, mean model": (gossiped["test_mean_model_accuracy"], n, n * size),
        "gossip learning, mean local": (wandering[accuracy], n, n * size),
        "gossip learning, mean model": (wandering["test_mean_model_accuracy"], n, n * size),
    }
    curves, cost = {}, {}
    for name, (reached, models, sent) in methods.items():
        models, sent = (np.broadcast_to(each, reached.shape).cumsum(1) for each in (models, sent))
        first = first_round(reached >= config.target)
        # Where the target is not reached, the cost is that of all rounds: a lower bound.
        place = np.minimum(first, T) - 1
        at = np.arange(len(place)), place
        cost[name] = first, models[at], sent[at] / 1e6
        curves[name] = reached, sent / 1e6
        report.row(
            f"{T} rounds, everyone there; cost of an accuracy of {config.target}",
            name,
            reached[:, -1],
            rounds=first,
            models=models[at],
            MB=sent[at] / 1e6,
        )
    gap = max(
        float(jnp.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(ideal), jax.tree.leaves(server), strict=True)
    )
    same = viewed["sampled"] == found["sampled"]
    per_round = viewed["models_sent"]
    ours, gossip = cost["MoDeST"], cost["D-SGD, mean local"]
    saved = gossip[1] / ours[1]
    megabytes = (gossip[2] / ours[2]).tolist()
    report.claim("idealised MoDeST is FedAvg: largest gap of parameters", gap <= 1e-5, gap, 1e-5)
    report.claim(
        "views give the samples of true membership (share that differs)",
        same.all(),
        float(1.0 - same.mean()),
        0.0,
    )
    # Of 2 s models one stays at the aggregator, and one more where it was a participant before.
    report.claim(
        "models per round: 2 s - 1, or 2 s - 2 where a participant aggregates next",
        set(np.unique(per_round[:, 1:])) <= {2 * s - 2, 2 * s - 1},
        float(per_round[:, 1:].mean()),
        2 * s - 1 - s / n,
    )
    report.claim(
        f"D-SGD (mean local) needs no fewer rounds to {config.target} and 5 times the models",
        saved.mean() >= 5.0 and gossip[0].mean() >= ours[0].mean(),
        saved.tolist(),
        5.0,
    )
    report.claim(
        "in megabytes, views and pings counted, it is 3 to 14 times (each seed)",
        all(3.0 <= ratio <= 14.0 for ratio in megabytes),
        megabytes,
        [3, 14],
    )
    return curves


def what_is_sent(config: Config, runs: dict[str, Found], report: Report) -> None:
    """Messages and kilobytes of a round, by kind, over the last 30 rounds."""
    for name, found in runs.items():
        last = {key: values[:, -30:] for key, values in found.items() if values.ndim == 2}
        report.row(
            "messages and kilobytes of a round, last 30 rounds",
            f"sent, {name}",
            None,
            models=last["models_sent"],
            pings=last["pings"],
            answers=last["answers"],
            **{f"{kind}_kB": last[f"{kind}_bytes"] / 1e3 for kind in KINDS},
        )


def joins(config: Config, runs: Runs, report: Report, stage: Stage) -> np.ndarray:
    """One node in ten joins, one every 5 rounds; returns the share that knows it, by rounds since."""
    newcomers = config.nodes // 10
    start = config.nodes - newcomers
    arrivals = np.zeros(config.nodes, np.int32)
    arrivals[start:] = 5 * np.arange(1, newcomers + 1)
    joining = runs.program(
        lambda r: runs.modest(r, success_fraction=0.9),
        config.rounds,
        runs.at_server,
        start=lambda algorithm, key, params, table: algorithm.init(key, params, arrivals),
        also=lambda state, table: {"known": state.clients.views.joined[:start, start:].mean(0)},
    )
    found = stage("joins", lambda: joining()[1])
    known = found["test_known"]
    # Rounds since each newcomer's own arrival, its first one counted.
    since = np.stack([known[:, t - 1 : t + 99, j] for j, t in enumerate(arrivals[start:])], -1)
    took = (found["sampled"][..., None] == np.arange(start, config.nodes)).any(2)
    rounds = np.arange(1, config.rounds + 1)[None, :, None]
    half, everybody, part = (
        np.where(reached, rounds - arrivals[start:], NEVER).min(1)
        for reached in (known >= 0.5, known >= 1.0, took)
    )
    report.row(
        "90 nodes start, 10 join: rounds after a join until",
        "joins",
        found["test_accuracy"][:, -1],
        half_know=half,
        all_know=everybody,
        last_of_all_knows=everybody.max(1),
        takes_part=part,
    )
    report.claim(
        "half of the nodes know a newcomer within 10 rounds, all within 90 (least and most)",
        half.max() <= 10 and everybody.max() <= 90,
        [int(half.min()), int(half.max()), int(everybody.min()), int(everybody.max())],
        [4, 6, 32, 62],
    )
    split = int(found["disagreements"].sum())
    report.claim("joins never split a sample's choice of aggregator", split == 0, split, 0)
    return since


STUDY = Study(
    Config,
    (Part("digits", on_digits, needs=(DIGITS,)),),
    quick=Config(nodes=20, sample=4, rounds=120, crash_rounds=180, local_steps=1, seeds=1),
    seconds=160,
    pictures=(
        Picture(
            name="modest",
            file="modest.png",
            claim=(
                "MoDeST trains as FedAvg does, without a server, and sends a fifth of "
                "what gossip sends."
            ),
            data="digits (scikit-learn), {config.nodes} nodes, Dirichlet {config.alpha:g}",
            bands="bands: one standard deviation of {config.seeds} seeds",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
