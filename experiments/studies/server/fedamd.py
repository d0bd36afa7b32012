"""FedAMD on digits, two classes a client: how many anchors, at which rate, when they go stale."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

import dflax as dx
from dflax.server import anchors
from experiments.tasks.inputs import DIGITS
from experiments.tools.command import main
from experiments.tools.curves import around
from experiments.tools.figures import curve, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Study, Summary

CLIENTS, PER_CLASS, COHORT = 20, 32, 4


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; 20 clients with 32 examples of each of two classes, 4 of them a round.

    Attributes:
      seeds: repetitions of the linear model, each with a split of its own.
      perceptron_seeds: repetitions of the perceptron.
      rounds: communication rounds, >= 200.
      local_steps: K of the miners.
      batch_size: b of the miners.
      rates: local rates of the linear model, low and high.
      probabilities: of being an anchor; 0.1, 0.3, 0.5, 0.8 and 0.9 are what the claims are about.
      perceptron_rates: local rates of the perceptron, low and high.
      hidden: width of the perceptron.
      seed: of everything random.
    """

    seeds: int = 8
    perceptron_seeds: int = 4
    rounds: int = 300
    local_steps: int = 10
    batch_size: int = 8
    rates: tuple[float, float] = (0.05, 0.2)
    probabilities: tuple[float, ...] = (0.1, 0.3, 0.5, 0.8, 0.9)
    perceptron_rates: tuple[float, float] = (0.02, 0.1)
    hidden: int = 32
    seed: int = 0


class Splits(NamedTuple):
    """Who owns what and what is left for testing, by seed.

    Attributes:
      partitions: S of them.
      test: `[S, 517]` example numbers.
    """

    partitions: list[dx.data.Partition]
    test: Int[Array, "S T"]


Make = Callable[[Array, Array], dx.Algorithm]
Begin = Callable[[dx.Algorithm, jax.Array, Any, Any], Any]


class Method(NamedTuple):
    """One line of the table.

    Attributes:
      make: `(rate, probability) -> Algorithm`.
      begin: `(algorithm, key, params, gradients) -> state`, with the clients' gradients at params.
    """

    make: Make
    begin: Begin = lambda algorithm, key, params, gradients: algorithm.init(key, params)


class Task(NamedTuple):
    """What a method is run on.

    Attributes:
      loss: of the model.
      start: `key -> params`.
      rates: local rates.
      splits: one per seed.
    """

    loss: Any
    start: Callable[[jax.Array], Any]
    rates: tuple[float, float]
    splits: Splits


def digits() -> dx.data.Dataset:
    """All 1,797 digits as one data set."""
    data = dx.data.digits()
    both = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b]),
        (data.train.inputs, data.train.labels),
        (data.test.inputs, data.test.labels),
    )
    return dataclasses.replace(data.train, inputs=both[0], labels=both[1])


def splits(labels: Int[np.ndarray, " N"], seeds: int, seed: int) -> Splits:
    """Each of four random orders of the ten classes pairs them up for five clients."""
    partitions, tests = [], []
    for own in range(seeds):
        generator = np.random.default_rng((seed, own))
        left = [list(generator.permutation(np.flatnonzero(labels == c))) for c in range(10)]
        pairs = np.concatenate([generator.permutation(10).reshape(5, 2) for _ in range(4)])
        owned = [
            np.array([left[c].pop() for c in pair for _ in range(PER_CLASS)]) for pair in pairs
        ]
        partitions.append(dx.data.from_indices(owned, seed=own))
        tests.append(np.sort(np.concatenate(left)))
    return Splits(partitions, jnp.asarray(np.stack(tests), jnp.int32))


def accuracies(
    config: Config,
    data: dx.data.Dataset,
    task: Task,
    method: Method,
    probabilities: tuple[float, ...] = (0.5,),
) -> Float[np.ndarray, "P R S T"]:
    """Test accuracy after every round, by probability, rate and seed, as one program."""
    first = dx.Federation(
        data,
        task.splits.partitions[0],
        local_steps=config.local_steps,
        batch_size=config.batch_size,
        participation=dx.participation.uniform(COHORT),
        weights=jnp.ones(CLIENTS),
        replacement=True,
    )
    sources = dx.side_by_side([first.replace(partition=own) for own in task.splits.partitions])
    loss = task.loss

    def gradients(own: dx.Federation, params: Any, key: Array) -> Any:
        everyone = own.draw(key, jnp.int32(0))._replace(cohort=None)
        oracle = dx.local.gradient(loss)
        return dx.map_clients(
            lambda batch, params, data: dx.local.large_gradient(oracle, params, batch, data),
            dx.local.large_batches(everyone, key),
            shared=(params, own.data),
        )

    def one(
        chance: Array, rate: Array, lane: Any, test: Array, key: Array, sources: dx.SideBySide
    ) -> Array:
        own = sources.source(lane)
        test = own.data.fetch(test)
        algorithm, params = method.make(rate, chance), task.start(key)

        def step(state: Any, round: Any) -> tuple[Any, dict[str, Array]]:
            state, _ = algorithm.step(state, round)
            return state, {"accuracy": loss(state.server.params, test, None)[1]["accuracy"]}

        state = method.begin(algorithm, key, params, gradients(own, params, key))
        measured = dx.Algorithm(algorithm.init, step)
        return dx.rollout(measured, state, own, key, config.rounds)[1]["accuracy"]

    grid = jax.vmap(one, in_axes=(None, None, 0, 0, 0, None))
    grid = jax.vmap(grid, in_axes=(None, 0, None, None, None, None))
    grid = jax.vmap(grid, in_axes=(0, None, None, None, None, None))
    chances, rates = (jnp.asarray(v, jnp.float32) for v in (probabilities, task.rates))
    keys = jax.random.split(jax.random.key(config.seed), len(task.splits.test))
    return np.asarray(jax.jit(grid)(chances, rates, sources.own, task.splits.test, keys, sources))


def from_gradients(algorithm: dx.Algorithm, key: jax.Array, params: Any, gradients: Any) -> Any:
    """The state of a method that starts from the clients' gradients."""
    return algorithm.init(key, params, gradients)


def methods(config: Config, loss: Any) -> dict[str, Method]:
    """Those of the table but for FedAMD with a constant probability, of which there are several."""
    steps = config.local_steps
    return {
        "FedAvg": Method(lambda rate, chance: dx.server.fedavg(loss, optax.sgd(rate))),
        "SCAFFOLD": Method(
            lambda rate, chance: dx.server.scaffold(loss, optax.sgd(rate), CLIENTS),
            from_gradients,
        ),
        "FedPAGE": Method(
            lambda rate, chance: dx.server.fedpage(loss, rate, 0.2, server_rate=steps * rate)
        ),
        "BVR-L-SGD": Method(lambda rate, chance: dx.server.bvr_l_sgd(loss, optax.sgd(rate), 5)),
        "FedAMD, period 2": amd(loss, 2),
        "FedAMD, period 3": amd(loss, 3),
    }


def amd(loss: Any, period: int | None = None) -> Method:
    """FedAMD with a period, or with the probability that it is given."""

    def make(rate: Array, chance: Array) -> dx.Algorithm:
        law = anchors.constant(chance) if period is None else anchors.periodic(period)
        # Several seeds in one program: both roles are computed and one is taken.
        return dx.server.fedamd(loss, optax.sgd(rate), law, at_once=COHORT)

    return Method(make, from_gradients)


def jitter(curve: Float[np.ndarray, "*B T"]) -> Float[np.ndarray, "*B"]:
    """Mean absolute change of accuracy from round to round after round 100."""
    return np.abs(np.diff(curve[..., 100:], axis=-1)).mean(-1)


def row(curve: Float[np.ndarray, "S T"]) -> dict[str, float]:
    """Means over seeds."""
    last = around(curve, curve.shape[-1], 5)
    return {
        **{f"round {t}": float(around(curve, t, 5).mean()) for t in (50, 100, 200)},
        "last": float(last.mean()),
        "std": float(last.std()),
        "jitter": float(jitter(curve).mean()),
    }


Curves = dict[str, Float[np.ndarray, "R S T"]]


def linear(config: Config, data: dx.data.Dataset, stage: Stage) -> Curves:
    """Softmax regression from zero."""
    loss = dx.losses.classification(_logits)
    zeros = {"weight": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}
    drawn = splits(np.asarray(data.labels), config.seeds, config.seed)
    task = Task(loss, lambda key: zeros, config.rates, drawn)
    curves = {
        name: stage(
            f"linear, {name}", lambda method=method: accuracies(config, data, task, method)[0]
        )
        for name, method in methods(config, loss).items()
    }
    swept = stage(
        "linear, FedAMD",
        lambda: accuracies(config, data, task, amd(loss), config.probabilities),
    )
    return curves | {
        f"FedAMD, p {p:g}": own for p, own in zip(config.probabilities, swept, strict=True)
    }


def perceptron(config: Config, data: dx.data.Dataset, stage: Stage) -> Curves:
    """A perceptron from He's law, which shows what stale anchors do."""
    model = dx.models.MLP((config.hidden,), classes=10)
    loss = dx.losses.classification(model.apply)
    drawn = splits(np.asarray(data.labels), config.perceptron_seeds, config.seed)

    def start(key: jax.Array) -> Any:
        shapes = model.init(key, data.example)["params"]
        he = jax.nn.initializers.he_normal()
        leaves, structure = jax.tree.flatten(shapes)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(
            structure,
            [
                he(own, leaf.shape) if leaf.ndim == 2 else leaf
                for own, leaf in zip(keys, leaves, strict=True)
            ],
        )

    task = Task(loss, start, config.perceptron_rates, drawn)
    known = methods(config, loss)
    curves = {
        name: stage(
            f"perceptron, {name}",
            lambda name=name: accuracies(config, data, task, known[name])[0],
        )
        for name in ("FedAvg", "FedAMD, period 2")
    }
    chances = (0.3, 0.5, 0.8)
    swept = stage("perceptron, FedAMD", lambda: accuracies(config, data, task, amd(loss), chances))
    return curves | {f"FedAMD, p {p:g}": own for p, own in zip(chances, swept, strict=True)}


def both_models(config: Config, stage: Stage = in_memory) -> Summary:
    """Both models, the claims on their curves, and three figures."""
    data = digits()
    flat, deep = linear(config, data, stage), perceptron(config, data, stage)
    rows = {
        f"{model}, rate {rate:g}: {name}": row(curve[place])
        for model, curves, rates in (
            ("linear", flat, config.rates),
            ("perceptron", deep, config.perceptron_rates),
        )
        for place, rate in enumerate(rates)
        for name, curve in curves.items()
    }
    low, high = config.rates
    slow, fast = config.perceptron_rates

    def of(name: str, rate: float, model: str = "linear") -> Mapping[str, float]:
        return rows[f"{model}, rate {rate:g}: {name}"]

    def compared(statement: str, ours: float, bound: float, above: bool = True) -> Claim:
        holds = ours >= bound if above else ours <= bound
        return Claim(statement, bool(holds), ours, f"{'>=' if above else '<='} {bound:.4g}")

    def calm(name: str, rate: float, model: str = "linear") -> float:
        return of("FedAvg", rate, model)["jitter"] / of(name, rate, model)["jitter"]

    half, most = "FedAMD, p 0.5", "FedAMD, p 0.8"
    lead = of(most, high)["round 100"] - of("FedAMD, p 0.3", high)["round 100"]
    tie = of(most, low)["round 100"] - of("FedAMD, p 0.3", low)["round 100"]
    claims = [
        compared(
            f"p 0.5 jitters at least 3 times less than FedAvg, rate {low:g}", calm(half, low), 3
        ),
        compared(f"p 0.8 jitters at least 8 times less, rate {high:g}", calm(most, high), 8),
        compared(
            f"p 0.5 ends within 0.3 points of FedAvg or above, rate {low:g}",
            of(half, low)["last"],
            of("FedAvg", low)["last"] - 0.003,
        ),
        compared(
            f"p 0.8 ends within 0.3 points of FedAvg or above, rate {high:g}",
            of(most, high)["last"],
            of("FedAvg", high)["last"] - 0.003,
        ),
        compared(
            f"interior optimum of p: 0.5 ends a point above 0.1, rate {low:g}",
            of(half, low)["last"],
            of("FedAMD, p 0.1", low)["last"] + 0.01,
        ),
        compared(
            f"interior optimum of p: 0.5 ends half a point above 0.9, rate {low:g}",
            of(half, low)["last"],
            of("FedAMD, p 0.9", low)["last"] + 0.005,
        ),
        compared(
            f"the best p rises with the rate: at round 100 p 0.8 leads 0.3 by 2 points, rate {high:g}",
            lead,
            0.02,
        ),
        compared(f"but by no more than 2 points either way, rate {low:g}", abs(tie), 0.02, False),
        compared(
            f"perceptron, rate {slow:g}: p 0.5 is at least as accurate as FedAvg",
            of(half, slow, "perceptron")["last"],
            of("FedAvg", slow, "perceptron")["last"],
        ),
        compared(
            f"perceptron, rate {slow:g}: with at least 4 times less jitter",
            calm(half, slow, "perceptron"),
            4,
        ),
        compared(
            f"perceptron, rate {fast:g}: stale anchors make p 0.5 collapse",
            of(half, fast, "perceptron")["last"],
            0.7,
            above=False,
        ),
        compared(
            f"perceptron, rate {fast:g}: whole rounds of anchors (period 2) stay stable",
            of("FedAMD, period 2", fast, "perceptron")["last"],
            0.93,
        ),
    ]
    figures = {
        "linear": _curves(flat, config.rates, "softmax regression"),
        "perceptron": _curves(deep, config.perceptron_rates, "perceptron 64-32-10"),
        "probability": _probabilities(config, flat),
    }
    return Summary(rows, claims, figures)


def _logits(params: dict[str, Array], inputs: Array) -> Array:
    return inputs.reshape(len(inputs), -1) @ params["weight"] + params["bias"]


def _curves(curves: Curves, rates: tuple[float, float], model: str) -> Any:
    hidden = ("SCAFFOLD", "FedPAGE", "BVR-L-SGD", "FedAMD, period 3")
    shown = [name for name in curves if name not in hidden]
    with figure(10.0, 4.0, ncols=2, sharey=True) as (drawn, panels):
        for place, (panel, rate) in enumerate(zip(panels, rates, strict=True)):
            for name, look in looks(shown).items():
                values = curves[name][place]
                curve(panel, np.arange(1, values.shape[1] + 1), values, look, name)
            panel.set(title=f"{model}, local rate {rate:g}", xlabel="round")
        low = 0.6 if model.startswith("softmax") else 0.0
        panels[0].set(ylabel="test accuracy", ylim=(low, 1.0))
        panels[0].legend(loc="lower right", fontsize=8)
    return drawn


def _probabilities(config: Config, curves: Curves) -> Any:
    with figure() as (drawn, axes):
        for place, rate in enumerate(config.rates):
            names = [f"FedAMD, p {p:g}" for p in config.probabilities]
            last = np.stack([around(curves[name][place], config.rounds, 5) for name in names])
            axes.errorbar(
                config.probabilities,
                last.mean(1),
                last.std(1),
                marker="os"[place],
                capsize=3,
                color=f"C{place}",
                label=f"FedAMD, rate {rate:g}",
            )
            mean = around(curves["FedAvg"][place], config.rounds, 5).mean()
            line = ("--", ":")[place]
            axes.axhline(mean, linestyle=line, color=f"C{place}", label=f"FedAvg, rate {rate:g}")
        axes.set(
            xlabel="probability of being an anchor",
            ylabel=f"test accuracy at round {config.rounds}",
        )
        axes.legend(loc="lower right")
    return drawn


STUDY = Study(
    Config,
    (Part("both models", both_models, needs=(DIGITS,)),),
    quick=Config(seeds=1, perceptron_seeds=1, rounds=200),
)


if __name__ == "__main__":
    main(STUDY, __file__)
