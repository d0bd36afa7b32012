"""Digits classified by nodes nobody trusts: committees, audits, leaks of a split, proofs and costs."""

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import binom

from dflax import verified_inference as vi
from experiments.studies.private import _verified_figures as figures
from experiments.tasks.inputs import DIGITS
from experiments.tasks.served_digits import (
    NODES,
    Served,
    flipped,
    lazy,
    leaking,
    scores,
    served,
)
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Input, Part, Picture, Study, Summary

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4)
COMMITTEES = (1, 3, 5, 7, 13)
AUDITS = (0.05, 0.1, 0.2, 0.5, 1.0)
LAZY = 4
AUDITORS = 7
# Of its executions that are audited; saved 0.4, reward 1, and a fine or a stake of 1.
AUDITED = (0.05, 0.1, 0.15, 0.25, 0.3, 0.4)
SAVED, FINE = 0.4, 1.0
CUTS = (1, 2, 3)
NOISES = (0.0, 0.5, 1.0, 2.0)
# MSE / Var of ridge inversion and accuracy in the prototype of the system's sheet, by cut.
PROTOTYPE = {
    1: ((0.06, 0.955), (0.37, 0.92), (0.56, 0.77), (0.79, 0.46)),
    2: ((0.25, 0.955), (0.54, 0.86), (0.71, 0.64), (0.88, 0.34)),
    3: ((0.40, 0.955), (0.58, 0.88), (0.72, 0.63), (0.87, 0.35)),
}
PRODUCTS = 1000


def _package(name: str, extra: str) -> Callable[[Any], Any]:
    def look(config: Any) -> Any:
        import importlib

        try:
            return importlib.import_module(name)
        except ImportError:
            raise ImportError(f"Install dflax[{extra}].") from None

    return look


EZKL = Input("ezkl", _package("ezkl", "zk"))
ONNX = Input("onnx", _package("onnx", "zk"))
TENSEAL = Input("tenseal", _package("tenseal", "he"))


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seeds: repetitions, each with its split, weights and draws.
      seed: of the first.
      epochs: of training.
      queries: of each committee and share of liars.
      audited: queries of each audit rate.
      steps: of training the network that inverts activations.
    """

    seeds: int = 5
    seed: int = 0
    epochs: int = 40
    queries: int = 4000
    audited: int = 2000
    steps: int = 300


def _tasks(config: Config, stage: Stage) -> list[Served]:
    """The seeds' networks."""
    seeds = range(config.seed, config.seed + config.seeds)
    found = stage("networks", lambda: [tuple(one[:-1]) for one in served(seeds, config.epochs)])
    return [
        Served(*arrays[:5], key=jax.random.key(1000 + seed))
        for seed, arrays in zip(seeds, found, strict=True)
    ]


def committees(config: Config, stage: Stage = in_memory) -> Summary:
    """Wrong answers that committees accept, over shares of colluding liars."""
    report = Report()
    tasks = _tasks(config, stage)
    cells = [(f, k) for k in COMMITTEES for f in SHARES]
    rates = jnp.array([f for f, _ in cells], jnp.float32)
    sizes = jnp.array([k for _, k in cells], jnp.int32)
    needed = np.array([max(1, int(np.ceil(2 * k / 3 - 1e-9))) for k in COMMITTEES])
    quorums = jnp.full(len(cells), 2 / 3, jnp.float32)

    def measured(escalations: int) -> dict[str, np.ndarray]:
        run = flipped(config.queries, max(COMMITTEES), escalations)
        each = []
        for task in tasks:
            source = vi.Queries(task.inputs, task.labels)
            keys = jax.random.split(task.key, len(cells))
            each.append(run(task.params, source, rates, sizes, quorums, keys))
        shape = (config.seeds, len(COMMITTEES), len(SHARES))
        return {k: np.stack([np.asarray(e[k]) for e in each]).reshape(shape) for k in each[0]}

    once = stage("committees", lambda: measured(0))
    enlarged = stage("committees that grow", lambda: measured(2))
    tails = np.array(
        [[binom.sf(q - 1, k, f) for f in SHARES] for k, q in zip(COMMITTEES, needed, strict=True)]
    )
    for title, found in (("one committee", once), ("enlarged twice", enlarged)):
        for place, k in enumerate(COMMITTEES):
            report.row(
                f"{title}, a third of the nodes lie or fewer: f = 0.3",
                f"{title}, k = {k}, quorum {needed[place]}",
                None,
                wrong=found["wrong"][:, place, 3],
                std=found["wrong"][:, place, 3].std(),
                tail=tails[place, 3],
                rejected=found["rejected"][:, place, 3],
                proved=found["proved"][:, place, 3],
                executions=found["executions"][:, place, 3],
            )
    _claims_of_committees(report, once["wrong"], enlarged["wrong"], tails, config.queries)
    return report.summary(
        {"verified_inference": figures.committees(SHARES, COMMITTEES, needed, once["wrong"], tails)}
    )


def _claims_of_committees(
    report: Report, wrong: np.ndarray, enlarged: np.ndarray, tails: np.ndarray, queries: int
) -> None:
    error = np.sqrt(tails * (1 - tails) / queries) + 1 / queries
    far = np.abs(wrong - tails) / error
    report.claim(
        "accepted-wrong is the binomial tail (largest distance in standard errors, each k, f and seed)",
        far.max() <= 4.5,
        far.max((1, 2)).tolist(),
        4.5,
    )
    report.claim(
        "no liars: nothing wrong is accepted", wrong[..., 0].max() == 0, wrong[..., 0].max(), 0
    )
    below = wrong[:, :, 1:4].mean(0)
    report.claim(
        "f < 1/3: each larger committee accepts fewer wrong answers (mean of seeds, f = 0.3)",
        np.all(np.diff(below, axis=0) <= 0),
        below[:, -1].tolist(),
        tails[:, 3].tolist(),
    )
    more = enlarged[:, 1:4, 3].mean(0) - wrong[:, 1:4, 3].mean(0)
    report.claim(
        "committees that grow until they agree accept more wrong answers than those that do not "
        "(k = 3, 5, 7; f = 0.3)",
        np.all(more >= 0),
        more.tolist(),
        0,
    )


def audits(config: Config, stage: Stage = in_memory) -> Summary:
    """Lazy nodes among 20 that run 4 bits or 16 units: when they are found, and whether it pays."""
    report = Report()
    tasks = _tasks(config, stage)
    kinds = np.zeros(NODES, np.int32)
    kinds[:LAZY] = (1, 1, 2, 2)
    run = lazy(config.audited, AUDITORS)

    def removed() -> dict[str, np.ndarray]:
        rule = vi.sequential_test()
        return _over(run, tasks, kinds, np.array(AUDITS), rule, 0.0, 1.0)

    found = stage("lazy nodes", removed)
    delay = np.where(found["removed"] >= 0, found["removed"] + 1.0, np.nan)
    predicted = 3 * NODES / (np.array(AUDITS) * AUDITORS)
    for place, p in enumerate(AUDITS):
        own = delay[:, place, :LAZY]
        report.row(
            "4 lazy nodes of 20, committees of 7",
            f"p_audit = {p}",
            None,
            delay=np.nanmean(own) if np.isfinite(own).any() else np.nan,
            delay_std=np.nanstd(own) if np.isfinite(own).any() else np.nan,
            predicted=predicted[place],
            four_bits=np.nanmean(own[:, :2]) if np.isfinite(own[:, :2]).any() else np.nan,
            sixteen_units=np.nanmean(own[:, 2:]) if np.isfinite(own[:, 2:]).any() else np.nan,
            found=np.isfinite(own).mean(),
            honest_removed=(found["removed"][:, place, LAZY:] >= 0).sum(),
            executions=found["executions"][:, place],
        )
    _claims_of_delay(report, delay[..., :LAZY], found["removed"][..., LAZY:], predicted)
    _claim_of_executions(report, found["executions"], config.audited)

    rates = np.array(AUDITED) / (AUDITORS - np.array(AUDITED) * (AUDITORS - 1))

    def paid() -> dict[str, np.ndarray]:
        return _over(run, tasks, kinds, rates, vi.never_removed(), FINE, 0.0)

    ledgers = stage("payments", paid)
    gain = _gain(ledgers)
    line = SAVED - np.array(AUDITED) * (1.0 + FINE)
    for place, share in enumerate(AUDITED):
        report.row(
            "what cheating gains per execution",
            f"{share} of the executions audited (p_audit = {rates[place]:.3f})",
            None,
            gain=gain[:, place],
            std=gain[:, place].std(),
            predicted=line[place],
        )
    crossing = np.array([_zero(np.array(AUDITED), row) for row in gain])
    _claims_of_deterrence(report, gain, line, crossing)
    drawn = figures.audits(AUDITS, delay[..., :LAZY], predicted, AUDITED, gain, line)
    return report.summary({"verified_audits": drawn})


def _over(
    run: Any,
    tasks: list[Served],
    kinds: np.ndarray,
    audit: np.ndarray,
    rule: vi.SequentialTest,
    fine: float,
    slash: float,
) -> dict[str, np.ndarray]:
    """Ledgers and means of the metrics, `[seeds, audit rates, ...]`; `done` are a node's executions."""
    each = []
    # As many rates in both uses, so that they are one program.
    rates = np.resize(audit, len(AUDITED))
    for task in tasks:
        keys = jax.random.split(task.key, len(rates))
        ledger, means = run(
            *(task._replace(key=None), jnp.asarray(kinds), jnp.asarray(rates, jnp.float32), rule),
            *(jnp.float32(fine), jnp.float32(slash), keys),
        )
        own = ledger._asdict()
        each.append(own | {"done": own["executions"]} | means)
    return {
        name: np.stack([np.asarray(found[name])[: len(audit)] for found in each])
        for name in each[0]
    }


def _gain(found: dict[str, np.ndarray]) -> np.ndarray:
    """Of the lazy nodes over the honest ones, per execution, `[seeds, audit rates]`."""
    each = found["balance"], np.maximum(found["done"], 1)
    bad, good = (
        each[0][..., part].sum(-1) / each[1][..., part].sum(-1)
        for part in (slice(LAZY), slice(LAZY, None))
    )
    return bad - good


def _zero(at: np.ndarray, values: np.ndarray) -> float:
    """Where the line through the points crosses zero."""
    slope, height = np.polyfit(at, values, 1)
    return float(-height / slope)


def _claims_of_delay(
    report: Report, delay: np.ndarray, honest: np.ndarray, predicted: np.ndarray
) -> None:
    late = ~np.isfinite(delay)
    report.claim(
        "every lazy node is found and removed (share not found at each audit rate, all seeds)",
        not late.any(),
        late.mean((0, 2)).tolist(),
        0,
    )
    ratio = np.nanmean(delay, axis=(0, 2)) / predicted
    report.claim(
        "three failed audits remove: the mean delay is 3 N / (p_audit k) queries (ratio, each rate)",
        np.all(np.abs(ratio - 1) <= 0.4),
        ratio.tolist(),
        1,
    )
    report.claim(
        "no honest node is removed (each rate and seed)",
        not np.any(honest >= 0),
        int((honest >= 0).sum()),
        0,
    )


def _claim_of_executions(report: Report, executions: np.ndarray, queries: int) -> None:
    p = np.array(AUDITS)
    wanted, error = 1 + p * (AUDITORS - 1), (AUDITORS - 1) * np.sqrt(p * (1 - p) / queries)
    off = np.abs(executions - wanted) - 4.5 * error
    report.claim(
        "a query takes 1 + p_audit (k - 1) executions, up to 0.1 for committees that grew (each rate, "
        "seed)",
        np.all(off <= 0.1),
        executions.mean(0).tolist(),
        wanted.tolist(),
    )


def _claims_of_deterrence(
    report: Report, gain: np.ndarray, line: np.ndarray, crossing: np.ndarray
) -> None:
    boundary = SAVED / (1.0 + FINE)
    report.claim(
        "cheating pays below the predicted audit rate and not above it (gain, each rate and seed)",
        np.all(np.sign(gain) == np.sign(line)),
        gain.mean(0).tolist(),
        line.tolist(),
    )
    report.claim(
        "the gain crosses zero at saved / (fine + reward) of the executions (within a tenth, each seed)",
        np.all(np.abs(crossing / boundary - 1) <= 0.1),
        crossing.tolist(),
        boundary,
    )


def leakage(config: Config, stage: Stage = in_memory) -> Summary:
    """How well inputs are found from what crosses the cut of a split model, and what noise costs."""
    report = Report()
    tasks = _tasks(config, stage)
    found: dict[int, dict[str, np.ndarray]] = {}
    at_home = [
        np.mean(np.argmax(scores(task.small, task.inputs), -1) == task.labels) for task in tasks
    ]
    report.row("nothing is sent", "16 units a layer, run at home", np.array(at_home))
    for cut in CUTS:

        def measured(cut: int = cut) -> dict[str, np.ndarray]:
            run = leaking(cut, config.steps)
            rows = [
                [run(task._replace(key=None), jnp.float32(sigma), task.key) for sigma in NOISES]
                for task in tasks
            ]
            return {
                name: np.array([[float(cell[name]) for cell in row] for row in rows])
                for name in rows[0][0]
            }

        found[cut] = stage(f"cut after layer {cut}", measured)
        for place, sigma in enumerate(NOISES):
            report.row(
                "MSE / Var of reconstructed inputs, digits",
                f"cut after layer {cut}, sigma {sigma}",
                found[cut]["accuracy"][:, place],
                ridge=found[cut]["ridge"][:, place],
                ridge_std=found[cut]["ridge"][:, place].std(),
                prototype=PROTOTYPE[cut][place][0],
                network=found[cut]["network"][:, place],
                correlation=found[cut]["correlation"][:, place],
                prototype_accuracy=PROTOTYPE[cut][place][1],
            )
    _claims_of_leakage(report, found)
    noisy = np.stack([found[cut]["accuracy"][:, 1:].mean(0) for cut in CUTS])
    report.claim(
        "a network of 16 units a layer, run at home, is more accurate than any cut with noise (mean)",
        np.mean(at_home) > noisy.max(),
        float(np.mean(at_home)),
        float(noisy.max()),
    )
    return report.summary({"verified_leakage": figures.leakage(NOISES, found)})


def _claims_of_leakage(report: Report, found: dict[int, dict[str, np.ndarray]]) -> None:
    ridge = np.stack([found[cut]["ridge"] for cut in CUTS], axis=1)
    accuracy = np.stack([found[cut]["accuracy"] for cut in CUTS], axis=1)
    report.claim(
        "without noise a deeper cut leaks less: MSE / Var of the ridge rises with depth (each seed)",
        np.all(np.diff(ridge[:, :, 0], axis=1) > 0),
        ridge[:, :, 0].mean(0).tolist(),
        [PROTOTYPE[cut][0][0] for cut in CUTS],
    )
    report.claim(
        "noise trades accuracy for privacy: with each step of it the error rises and accuracy falls "
        "(each cut and seed)",
        np.all(np.diff(ridge, axis=2) > 0) and np.all(np.diff(accuracy, axis=2) < 0),
        accuracy.mean(0).ravel().tolist(),
        "falling",
    )
    network = np.stack([found[cut]["network"] for cut in CUTS], axis=1)
    report.claim(
        "a network finds more than the ridge at the deepest cut without noise (each seed)",
        np.all(network[:, -1, 0] < ridge[:, -1, 0]),
        network[:, -1, 0].tolist(),
        ridge[:, -1, 0].tolist(),
    )
    wanted = np.array([[error for error, _ in PROTOTYPE[cut]] for cut in CUTS])
    off = np.abs(ridge.mean(0) - wanted)
    report.claim(
        "the errors are those of the prototype (largest distance of the 12 cells)",
        np.all(off <= 0.1),
        float(off.max()),
        0.1,
    )


def proofs(config: Config, stage: Stage = in_memory) -> Summary:
    """A thousand altered products before both checks, and what proofs of the network cost."""
    report = Report()
    task = _tasks(config, stage)[0]
    layers = _layers(task)
    network = vi.quantise(layers, task.known)
    agree = np.mean(
        np.argmax(vi.quantised_apply(network, task.inputs), -1)
        == np.argmax(scores(task.params, task.inputs), -1)
    )
    seeds = range(config.seed, config.seed + config.seeds)
    caught = stage("altered products", lambda: np.array([_caught(network, task, s) for s in seeds]))
    report.claim(
        "Freivalds and sum-check accept every right product and none of 1,000 altered (accepted: right "
        "and altered by the one, by the other; least or most of seeds)",
        np.all(caught[:, [0, 2]] == PRODUCTS) and np.all(caught[:, [1, 3]] == 0),
        [int(x) for x in (*caught[:, ::2].min(0), *caught[:, 1::2].max(0))],
        [PRODUCTS, PRODUCTS, 0, 0],
    )
    costs = stage("costs", lambda: _costs(network, layers, task))
    for name in ("execution", "consensus", "sum-check proof", "shares"):
        report.row("costs of one answer, in milliseconds", name, None, **_named(costs, name))
    report.claim(
        "8 bits keep the labels (share of the test set)", agree >= 0.97, float(agree), 0.97
    )
    report.claim(
        "a proof of the whole network is verified, and refused after one altered output",
        bool(costs["held"]) and not bool(costs["altered"]),
        [bool(costs["held"]), bool(costs["altered"])],
        [True, False],
    )
    return report.summary({})


def _layers(task: Served) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels and biases on the host."""
    return [(np.asarray(kernel), np.asarray(bias)) for kernel, bias in vi.layers_of(task.params)]


def _named(costs: dict[str, Any], name: str) -> dict[str, Any]:
    return {key.split("/")[1]: value for key, value in costs.items() if key.startswith(f"{name}/")}


def _caught(network: vi.QuantisedNetwork, task: Served, seed: int) -> list[int]:
    """How many right and altered products of the first layer both checks accept."""
    generator = np.random.default_rng(seed)
    rows = generator.choice(len(task.inputs), 16, replace=False)
    scaled = np.round(np.asarray(task.inputs)[rows] * 2.0**network.input_bits)
    a = np.clip(scaled, -network.largest, network.largest).astype(np.int32)
    b = np.asarray(network.kernels[0])
    c = a @ b
    altered = np.repeat(c[None], PRODUCTS, 0)
    which = np.arange(PRODUCTS)
    at = generator.integers(0, c.shape[0], PRODUCTS), generator.integers(0, c.shape[1], PRODUCTS)
    altered[which, at[0], at[1]] += generator.choice([-1, 1], PRODUCTS) * generator.integers(
        1, 2**16, PRODUCTS
    )
    keys = jax.random.split(jax.random.key(seed), PRODUCTS)
    right = np.repeat(c[None], PRODUCTS, 0)
    return [
        int(run(keys, a, b, jnp.asarray(claims)).sum())
        for run in (_freivalds, _sum_check)
        for claims in (right, altered)
    ]


def _of_each(check: Callable[..., Any]) -> Callable[..., Any]:
    """A check of many claims about one product, 50 at a time."""
    return jax.jit(
        lambda keys, a, b, claims: jax.lax.map(
            lambda own: check(own[0], a, b, own[1]), (keys, claims), batch_size=50
        )
    )


_freivalds, _sum_check = map(_of_each, (vi.freivalds, vi.sum_check))


def _costs(network: vi.QuantisedNetwork, layers: Any, task: Served) -> dict[str, np.ndarray]:
    """Milliseconds and bytes of one answer, by what is done for its sake."""
    x = np.asarray(task.inputs)[:1]
    run = jax.jit(scores)
    execution = _milliseconds(lambda: jax.block_until_ready(run(task.params, x)))
    prover = vi.sum_check_prover(network)
    y = np.asarray(vi.quantised_apply(network, x))
    proof = prover.prove(prover.model, x, y)
    proving = _milliseconds(lambda: prover.prove(prover.model, x, y))
    verifying = _milliseconds(lambda: prover.verify(proof))
    key = jax.random.key(0)
    shares = jax.jit(
        lambda x: _through_shares(key, layers, x),
    )
    private = np.asarray(shares(x))
    sharing = _milliseconds(lambda: jax.block_until_ready(shares(x)))
    sent = 4 * 2 * sum(np.size(x) + np.size(y) for x, y in _ends(layers))
    return {
        "execution/ms": execution,
        "execution/bytes": 4 * (x.size + y.size),
        "consensus/ms": AUDITORS * execution,
        "consensus/bytes": AUDITORS * (4 * (x.size + y.size) + 32),
        "sum-check proof/ms": proving,
        "sum-check proof/verifying": verifying,
        "sum-check proof/bytes": len(proof),
        "shares/ms": sharing,
        "shares/bytes": sent,
        "shares/error": np.abs(private - np.asarray(run(task.params, x))).max(),
        "held": np.array(prover.verify(proof)),
        "altered": np.array(prover.verify(_altered_output(proof, len(layers) - 1))),
    }


def _ends(layers: Any) -> list[tuple[Any, Any]]:
    return [(kernel[:, 0], kernel[0]) for kernel, _ in layers]


def _through_shares(key: Any, layers: Any, x: Any) -> Any:
    for place, (kernel, bias) in enumerate(layers):
        x = vi.shared_linear(jax.random.fold_in(key, place), kernel, bias, x, fraction=10)
        x = jax.nn.relu(x) if place < len(layers) - 1 else x
    return x


def _altered_output(proof: bytes, layer: int) -> bytes:
    """The same proof about another output."""
    import io

    with np.load(io.BytesIO(proof)) as file:
        parts = {name: file[name] for name in file.files}
    parts[f"products{layer}"][0, 0] += 1
    changed = io.BytesIO()
    np.savez_compressed(changed, **parts)
    return changed.getvalue()


def _milliseconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """The least of several timings, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


ZERO_KNOWLEDGE = (
    "a zero-knowledge proof of the network is made and verified, and refused after one altered output",
    "such a proof takes more than 1,000 times as long as a consensus of 7 executions",
)


def zero_knowledge(config: Config, stage: Stage = in_memory) -> Summary:
    """A zero-knowledge proof of the whole network by ezkl."""
    report = Report()
    task = _tasks(config, stage)[0]
    costs = stage("zero-knowledge proof", lambda: _zero_knowledge(task))
    report.row(
        "costs of one answer in zero knowledge, in milliseconds",
        "zero-knowledge proof",
        None,
        **_named(costs, "zk"),
    )
    held, altered = bool(costs["held"]), [bool(one) for one in costs["altered"]]
    report.claim(
        ZERO_KNOWLEDGE[0], held and not any(altered), [held, *altered], [True, False, False]
    )
    times = float(costs["zk/ms"]) / (AUDITORS * float(costs["execution"]))
    report.claim(ZERO_KNOWLEDGE[1], times > 1000, times, 1000)
    return report.summary({})


def _zero_knowledge(task: Served) -> dict[str, Any]:
    x = np.asarray(task.inputs)[:1]
    run = jax.jit(scores)
    execution = _milliseconds(lambda: jax.block_until_ready(run(task.params, x)))
    y = np.asarray(run(task.params, x))
    layers = _layers(task)
    began = time.perf_counter()
    prover = vi.zero_knowledge_prover(layers, np.asarray(task.known)[:20])
    ready = time.perf_counter()
    proof = prover.prove(prover.model, x, y)
    proved = time.perf_counter()
    held = prover.verify(proof)
    verifying = _milliseconds(lambda: prover.verify(proof), repeats=3)
    altered = []
    for place in (-1, 0):
        content = json.loads(proof)
        word = content["instances"][0][place]
        content["instances"][0][place] = f"{int(word[:2], 16) ^ 1:02x}" + word[2:]
        altered.append(prover.verify(json.dumps(content).encode()))
    return {
        "zk/setting_up": 1e3 * (ready - began),
        "zk/ms": 1e3 * (proved - ready),
        "zk/verifying": verifying,
        "zk/bytes": len(proof),
        "zk/error": np.abs(vi.proved_outputs(proof) - y).max(),
        "execution": execution,
        "held": np.array(held),
        "altered": np.array(altered),
    }


HOMOMORPHIC = ("layers on encrypted activations give the network's scores (largest difference)",)


def homomorphic(config: Config, stage: Stage = in_memory) -> Summary:
    """The network's layers on encrypted activations by tenseal."""
    report = Report()
    task = _tasks(config, stage)[0]
    costs = stage("encrypted layers", lambda: _homomorphic(task))
    report.row(
        "costs of one answer on ciphertexts, in milliseconds",
        "homomorphic layers",
        None,
        **_named(costs, "he"),
    )
    report.claim(HOMOMORPHIC[0], costs["he/error"] < 1e-3, float(costs["he/error"]), 1e-3)
    return report.summary({})


def _homomorphic(task: Served) -> dict[str, Any]:
    x = np.asarray(task.inputs)[0]
    layers = _layers(task)
    began = time.perf_counter()
    held = [vi.homomorphic_linear(kernel, bias) for kernel, bias in layers]
    ready = time.perf_counter()
    h, sent = x.astype(float), 0
    for place, layer in enumerate(held):
        there = layer.encrypt(h)
        back = layer.evaluate(there)
        sent += len(there) + len(back)
        h = layer.decrypt(back)
        h = np.maximum(h, 0.0) if place < len(held) - 1 else h
    took = time.perf_counter() - ready
    return {
        "he/setting_up": 1e3 * (ready - began),
        "he/ms": 1e3 * took,
        "he/bytes": sent,
        "he/keys": sum(len(layer.public) for layer in held),
        "he/error": np.abs(h - np.asarray(scores(task.params, x[None]))[0]).max(),
    }


STUDY = Study(
    Config,
    (
        Part("committees", committees, needs=(DIGITS,)),
        Part("audits", audits, needs=(DIGITS,)),
        Part("leakage", leakage, needs=(DIGITS,)),
        Part("proofs", proofs, needs=(DIGITS,)),
        Part(
            "zero knowledge",
            zero_knowledge,
            needs=(DIGITS, EZKL, ONNX),
            states=lambda config: list(ZERO_KNOWLEDGE),
        ),
        Part(
            "homomorphic",
            homomorphic,
            needs=(DIGITS, TENSEAL),
            states=lambda config: list(HOMOMORPHIC),
        ),
    ),
    quick=Config(seeds=1, epochs=10, queries=500, audited=300, steps=50),
    pictures=(
        Picture(
            name="verified_inference",
            file="verified_inference.png",
            claim="Committees accept as many wrong answers as the binomial tail says.",
            data="digits (scikit-learn), 20 nodes",
            bands="bars: least to largest of {config.seeds} seeds",
            headed=False,
        ),
        Picture(
            name="verified_audits",
            file="verified_audits.png",
            claim=(
                "Lazy nodes are found after 3 N / (p k) queries; cheating pays up to the "
                "predicted audit rate."
            ),
            data="digits (scikit-learn), 4 lazy nodes of 20",
            bands="dots: single nodes; bars: least to largest of {config.seeds} seeds",
            headed=False,
        ),
        Picture(
            name="verified_leakage",
            file="verified_leakage.png",
            claim=(
                "A deeper cut leaks less, noise trades accuracy for privacy, and a "
                "network of 16 units run at home beats every cut with noise."
            ),
            data="digits (scikit-learn), a perceptron cut after each layer",
            bands="bars: least to largest of {config.seeds} seeds",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    from experiments.tools.command import main

    main(STUDY, __file__)
