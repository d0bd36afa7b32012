"""Decentralised retrieval-augmented generation: sources that lie are found out and no longer believed.

Six sources, of which 0, 20, 40, 60, 80 and 100 % of the documents are polluted: in a synthetic world,
and as copies of Python's own manual with a reader that extracts the missing word of a sentence.

Sixteen seeds of the world: .59 right answers from a central index, .83 with a quarter of the weight on
reliability. With half of it seeds differ: one in four follows the source that lies in a fifth of its
documents. Of 400 questions to the manual a central index answers .64, weight .25 .99, clean copies .99.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import p2p
from experiments.tasks.manuals import offered, questions
from experiments.tools.command import main
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Input, Part, Picture, Study, Summary

POLLUTION = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
WEIGHTS = (0.0, 0.25, 0.5, 0.75)
# What a Vyper contract took for n updates in one transaction.
MEASURED = {1: 49335, 2: 74072, 5: 148331, 10: 272064, 15: 395821, 20: 519554}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seeds: worlds.
      seed: of the first.
      queries: of a run.
      temperature: of the softmax that is tried beside min-max scaling.
      texts: questions to the manual; 0 for none.
      text_seeds: draws of questions and pollution.
      documents: that each source offers.
      transactions: queries whose scores a contract keeps as well.
    """

    seeds: int = 16
    seed: int = 700
    queries: int = 1500
    temperature: float = 1000.0
    texts: int = 400
    text_seeds: int = 3
    documents: int = 3
    transactions: int = 60


def world(config: Config, stage: Stage = in_memory) -> Summary:
    """A synthetic world: exact matches and scores by the weight of reliability."""
    report = Report()
    runs = {
        **{f"weight {weight:g}": (weight, None, POLLUTION) for weight in WEIGHTS},
        "weight 0.5, softmax": (0.5, p2p.softmax_trust(config.temperature), POLLUTION),
        "clean, weight 0": (0.0, None, (0.0,) * 6),
        "clean, weight 0.5": (0.5, None, (0.0,) * 6),
    }
    found = {}
    for name, (weight, trust, pollution) in runs.items():

        def run(weight: float = weight, trust: Any = trust, pollution: Any = pollution) -> Any:
            return _runs(config, weight, trust, pollution)

        found[name] = stage(name, run)
    for name, own in found.items():
        right = own["right"].mean(1)
        leader = own["reliability"][:, -1].argmax(1)
        report.row(
            f"exact match over {config.queries} queries, {config.seeds} seeds",
            name,
            None,
            right=right,
            std=right.std(),
            least=right.min(),
            largest=right.max(),
            clean_leads=np.mean(leader == 0),
            last_third=own["right"][:, -config.queries // 3 :].mean(1),
        )
    _claims(report, found)
    return report.summary({"drag": _figure(config, found)})


def gas(config: Config, stage: Stage = in_memory) -> Summary:
    """What writing costs: the ledger's law beside a contract's transactions."""
    report = Report()
    start = p2p.ledger(20)
    nothing = jnp.zeros(20, jnp.int32)

    def spent() -> list[float]:
        return [
            float(p2p.written(start, nothing, nothing, jnp.arange(20) < n, p2p.gas()).gas)
            for n in MEASURED
        ]

    ours = np.array(stage("ledger", spent))
    measured = np.array(list(MEASURED.values()))
    for n, own, theirs in zip(MEASURED, ours, measured, strict=True):
        report.row("gas of one transaction", f"{n} updates", None, law=own, contract=theirs)
    report.claim(
        "the law is within .2 % of the contract",
        np.all(np.abs(ours / measured - 1) < 2e-3),
        float(np.abs(ours / measured - 1).max().round(5)),
        2e-3,
    )
    saving = 1 - measured[3] / 10 / measured[0]
    report.claim(
        "ten updates at once save more than 40 % each", saving > 0.4, float(saving.round(3)), 0.4
    )
    return report.summary({})


def contract(config: Config, stage: Stage = in_memory) -> Summary:
    """A contract on an Ethereum virtual machine: its scores beside the ledger's, and its gas."""
    from dflax.p2p.rag.contract import ScoreContract

    report = Report()

    def side_by_side() -> dict[str, Any]:
        deployed = ScoreContract(len(POLLUTION))
        algorithm = p2p.drag(len(POLLUTION), weight=0.25, text_weight=0.0, prior_weight=0.0)
        source, key = p2p.polluted_world(), jax.random.key(config.seed)
        step = jax.jit(lambda state, t: algorithm.step(state, source.draw(key, t)))
        state = algorithm.init(key)
        for t in range(config.transactions):
            before = state.ledger
            state, _ = step(state, t)
            changes = np.stack(
                [
                    np.asarray(getattr(state.ledger, name) - getattr(before, name))
                    for name in ("reliability", "usefulness")
                ]
            )
            who = np.flatnonzero(np.any(changes != 0, axis=0))
            if len(who):
                deployed.update(t.to_bytes(32, "big"), who.tolist(), *changes[:, who].tolist())
        return {
            "contract": np.stack(deployed.scores()),
            "ledger": np.stack([state.ledger.reliability, state.ledger.usefulness]),
        }

    def transactions() -> list[int]:
        deployed = ScoreContract(20)
        everyone = list(range(20))
        # The first write of a record costs more than all later ones.
        deployed.update(bytes(32), everyone, [1] * 20, [1] * 20)
        return [deployed.update(bytes(32), everyone[:n], [3] * n, [-2] * n).gas for n in MEASURED]

    found = stage(f"{config.transactions} queries on the chain", side_by_side)
    same = bool(np.array_equal(found["contract"], found["ledger"]))
    report.claim(
        "after as many queries the contract's scores are the ledger's",
        same,
        found["contract"].tolist(),
        found["ledger"].tolist(),
    )
    used = np.array(stage("gas of the contract", transactions), float)
    counts = np.array(list(MEASURED), float)
    each, fixed = np.polyfit(counts, used, 1)
    for n, own in zip(MEASURED, used, strict=True):
        report.row("gas of our contract, with nonces", f"{n} updates, ours", None, gas=own)
    off = np.abs(used / (fixed + each * counts) - 1).max()
    report.claim(
        "its gas is affine within 2 %",
        off < 0.02,
        [round(float(fixed)), round(float(each)), round(float(off), 4)],
        0.02,
    )
    saving = 1 - used[3] / 10 / used[0]
    report.claim(
        "ten updates at once save more than 35 % each, on our contract, whose nonces cost beside",
        saving > 0.35,
        round(float(saving), 3),
        0.35,
    )
    return report.summary({})


def manual(config: Config, stage: Stage = in_memory) -> Summary:
    """Python's manual: BM25 and TF-IDF find passages, an extractive reader answers."""
    report = Report()
    found: dict[float, list[np.ndarray]] = {weight: [] for weight in WEIGHTS}
    clean: list[float] = []
    leaders = []
    for seed in range(config.seed, config.seed + config.text_seeds):

        def of_seed(seed: int = seed) -> Any:
            asked = questions(config.texts, seed)
            polluted = offered(asked, POLLUTION, config.documents, seed)
            whole = offered(asked, (0.0,) * 6, config.documents, seed)
            own = {f"{weight:g}": _texts(polluted, weight, seed) for weight in WEIGHTS}
            return own | {"clean": _texts(whole, 0.0, seed)}

        own = stage(f"questions, seed {seed}", of_seed)
        for weight in WEIGHTS:
            found[weight].append(own[f"{weight:g}"]["right"])
        clean.append(float(own["clean"]["right"].mean()))
        leaders.append(int(own["0.25"]["reliability"].argmax()))
    table = f"Python's manual, {config.texts} questions, {config.text_seeds} seeds: exact match"
    for weight, runs in found.items():
        means = np.array([run.mean() for run in runs])
        second = np.array([run[len(run) // 2 :].mean() for run in runs])
        report.row(
            table,
            f"manual, weight {weight:g}",
            None,
            right=means,
            std=means.std(),
            second_half=second,
        )
    report.row(table, "manual, clean copies", None, right=np.array(clean))
    ends: dict[float, np.ndarray] = {
        w: np.array([run[len(run) // 2 :].mean() for run in own]) for w, own in found.items()
    }
    report.claim(
        "manual: in the second half weight .25 is ahead of a central index (each seed)",
        np.all(ends[0.25] > ends[0.0]),
        ends[0.25].round(3).tolist(),
        ends[0.0].round(3).tolist(),
    )
    report.claim(
        "manual: the clean copy ends with the highest reliability at weight .25 (each seed)",
        all(leader == 0 for leader in leaders),
        leaders,
        0,
    )
    return report.summary({})


def _runs(config: Config, weight: float, trust: Any, pollution: tuple[float, ...]) -> Any:
    source = p2p.polluted_world(pollution)
    algorithm = p2p.drag(
        len(pollution), weight=weight, trust=trust, text_weight=0.0, prior_weight=0.0
    )
    measured = dx.Algorithm(
        algorithm.init,
        lambda state, round: _with_scores(*algorithm.step(state, round)),
    )

    @jax.jit
    @jax.vmap
    def run(key: Any) -> Any:
        _, metrics = dx.rollout(measured, measured.init(key), source, key, config.queries)
        return {name: metrics[name] for name in ("right", "reliability")}

    return run(jax.vmap(jax.random.key)(config.seed + jnp.arange(config.seeds)))


def _with_scores(state: Any, metrics: dict[str, Any]) -> Any:
    return state, metrics | {"reliability": state.ledger.reliability}


def _texts(candidates: p2p.Candidates, weight: float, seed: int) -> dict[str, Any]:
    """Questions in turn, as a table of events."""
    algorithm = p2p.drag(candidates.claim.shape[1], weight=weight)
    key = jax.random.key(seed)
    source = dx.Events(candidates)
    state, metrics = jax.jit(
        lambda source, key: dx.rollout(algorithm, algorithm.init(key), source, key, source.rows)
    )(source, key)
    return {"right": metrics["right"], "reliability": state.ledger.reliability}


def _claims(report: Report, found: dict[str, Any]) -> None:
    right = {name: own["right"].mean(1) for name, own in found.items()}
    final = {name: own["reliability"][:, -1] for name, own in found.items()}
    central = right["weight 0"]
    quarter, half = right["weight 0.25"], right["weight 0.5"]
    report.claim(
        "weight .25: .15 above the central index (each seed)",
        np.all(quarter >= central + 0.15),
        (quarter - central).round(3).tolist(),
        0.15,
    )
    scores = final["weight 0.25"]
    report.claim(
        "weight .25: the clean source leads, those with 80 and 100 % fall below their start (each seed)",
        np.all(scores.argmax(1) == 0) and np.all(scores[:, 4:] < 10_000),
        scores[:, 4:].max(0).tolist(),
        10_000,
    )
    report.claim(
        "weight .5: .08 above (each seed) and .2 (mean)",
        np.all(half >= central + 0.08) and half.mean() >= central.mean() + 0.2,
        [float((half - central).min().round(3)), float((half - central).mean().round(3))],
        [0.08, 0.2],
    )
    scores = final["weight 0.5"]
    report.claim(
        "weight .5: a source of at most 20 % leads, that of 100 % gains nothing (each seed)",
        np.all(scores.argmax(1) <= 1) and np.all(scores[:, 5] <= 10_000),
        scores.argmax(1).tolist(),
        [0, 1],
    )
    report.claim(
        "a clean world: weight 0 is above .5 by .03 or more (mean)",
        right["clean, weight 0"].mean() >= right["clean, weight 0.5"].mean() + 0.03,
        float(right["clean, weight 0"].mean().round(3)),
        float((right["clean, weight 0.5"].mean() + 0.03).round(3)),
    )
    locked = {
        weight: float(np.mean(final[f"weight {weight}"].argmax(1) > 0))
        for weight in (0.25, 0.5, 0.75)
    }
    report.claim(
        "lock-in: at weight .25 no seed follows a polluted source; at .75 some do",
        locked[0.25] == 0 and locked[0.75] > 0,
        locked,
        [0, "> 0"],
    )


def _figure(config: Config, found: dict[str, Any]) -> Any:
    window = max(config.queries // 15, 1)
    with figure(10.5, 3.8, ncols=2) as (drawn, (curves, ends)):
        for place, weight in enumerate(WEIGHTS):
            right = found[f"weight {weight:g}"]["right"]
            smooth = right[:, : right.shape[1] // window * window].reshape(len(right), -1, window)
            smooth = smooth.mean(2)
            queries = (1 + np.arange(smooth.shape[1])) * window
            style = ("k:", "-", "--", "-.")[place]
            line = curves.plot(queries, smooth.mean(0), style, label=f"{weight:g}")[0]
            curves.fill_between(
                queries, smooth.min(0), smooth.max(0), alpha=0.12, lw=0, color=line.get_color()
            )
        curves.set(
            xlabel="queries",
            ylabel=f"right answers, means over {window}",
            ylim=(0.2, 1),
            title=f"synthetic world; bands: least and largest of {config.seeds} seeds",
        )
        curves.legend(
            title="weight of reliability; 0: a central index",
            fontsize=8,
            title_fontsize=8,
            ncols=4,
            loc="lower center",
        )
        for place, weight in enumerate((0.25, 0.5)):
            scores = found[f"weight {weight:g}"]["reliability"][:, -1] / 1000
            at = 100 * np.array(POLLUTION) + (2 * place - 1) * 1.5
            ends.plot(
                np.repeat(at, len(scores)),
                scores.T.reshape(-1),
                ("o", "x")[place],
                ms=4,
                alpha=0.6,
                label=f"weight {weight:g}",
            )
        ends.axhline(10, color="k", lw=0.8)
        ends.set_yscale("symlog", linthresh=10)
        ends.set(
            xlabel="polluted documents of a source (%)",
            ylabel="reliability at the end (thousands)",
            title="each mark is a source in one seed; line: the start",
        )
        ends.legend(fontsize=8)
    return drawn


def _rank(config: Config) -> Any:
    import rank_bm25

    return rank_bm25


def _evm(config: Any) -> Any:
    from dflax.p2p.rag.contract import _libraries

    return _libraries()


EVM = Input("vyper, web3 and eth-tester (extra evm)", _evm)
BM25 = Input("rank-bm25 (extra p2p)", _rank)

STUDY = Study(
    Config,
    (
        Part("world", world, needs=()),
        Part("gas", gas, needs=()),
        Part("contract", contract, needs=(EVM,)),
        Part(
            "manual",
            manual,
            needs=(BM25,),
            wanted=lambda config: config.texts > 0,
        ),
    ),
    seconds=26,
    quick=Config(seeds=2, queries=150, texts=60, text_seeds=1, transactions=3),
    pictures=(
        Picture(
            name="drag",
            file="drag.png",
            claim=(
                "A quarter of the weight on reliability takes right answers from .59 to "
                ".83; half of it may follow the second-best source."
            ),
            data="a synthetic world: six sources that lie in 0 to 100 % of their documents",
            bands="bands: least to largest of {config.seeds} seeds; marks: a source in one seed",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
