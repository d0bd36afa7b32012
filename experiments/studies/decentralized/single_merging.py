"""When to spend communication: sparse gossip and one merge against averaging early, late or always."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import dflax as dx
from dflax import evaluation
from dflax.topology import intensity
from experiments.tasks.inputs import DIGITS, FASHION_MNIST
from experiments.tools.command import main
from experiments.tools.figures import curve, figure, log_megabytes, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.lanes import each
from experiments.tools.study import Claim, Part, Picture, Study, Summary
from experiments.tools.traffic import megabytes, model_bytes

Curves = dict[str, np.ndarray]
Networks = Literal["none", "small", "cnn", "resnet"]
FAMILIAR = ("local", "merged", "sent", "distance")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      nodes: n, each with a class law of its own, from which every minibatch is redrawn.
      alpha: Dirichlet concentration of the laws.
      mass: least mean mass of a class over the nodes; laws are redrawn until it is reached.
      rounds: rounds T on scikit-learn's digits.
      local_steps: local steps per round K.
      batch_size: examples per local step.
      rate: of plain SGD.
      r: others a node hears per round in sparse gossip.
      dense: rounds of exact averaging in the early and in the late window.
      seeds: repetitions with laws, starts and minibatches of their own; how much a single draw of the
        laws matters takes several to see.
      seed: of the first repetition.
      network: on Fashion-MNIST afterwards: "small" a CNN of 8 and 16 channels, "cnn" the usual one of
        32 and 64, "resnet" a ResNet-18 with BatchNorm, "none" nothing.
      image_rounds: rounds on Fashion-MNIST.
      image_steps: local steps per round on Fashion-MNIST.
      image_seeds: repetitions on Fashion-MNIST.
      width: channels of the ResNet's first stage.
    """

    nodes: int = 16
    alpha: float = 0.1
    mass: float = 0.03
    rounds: int = 100
    local_steps: int = 20
    batch_size: int = 32
    rate: float = 0.1
    r: float = 0.2
    dense: int = 5
    seeds: int = 8
    seed: int = 11
    network: Networks = "small"
    image_rounds: int = 20
    image_steps: int = 10
    image_seeds: int = 2
    width: int = 8


class Digits(nn.Module):
    """64-64-10 with Glorot-uniform kernels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[B, 10]`."""
        glorot = nn.initializers.glorot_uniform()
        x = nn.relu(nn.Dense(64, kernel_init=glorot)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10, kernel_init=glorot)(x)


class Task(NamedTuple):
    """A problem with what every repetition of it needs.

    Attributes:
      loss: of one model.
      optimizer: of every node.
      sources: the nodes of every seed.
      keys: of the runs, one per seed.
      draw: `key -> model`.
      measures: of a node's model, and of the merged one.
      rounds: T.
      every: rounds between measurements.
    """

    loss: Callable[..., Any]
    optimizer: optax.GradientTransformation
    sources: dx.SideBySide
    keys: jax.Array
    draw: Callable[[jax.Array], Any]
    measures: tuple[Any, Any]
    rounds: int
    every: int


def nodes(config: Config, data: dx.data.Split, seeds: int, steps: int) -> dx.SideBySide:
    """The federations of every seed, with class laws of their own."""
    labels = np.asarray(data.labels)
    laws = [
        dx.data.resample(
            labels,
            dx.data.dirichlet_laws(config.seed + seed, config.nodes, 10, config.alpha, config.mass),
        )
        for seed in range(seeds)
    ]
    first = dx.Federation(data, laws[0], local_steps=steps, batch_size=config.batch_size)
    return dx.side_by_side([first.replace(partition=own) for own in laws])


def digits(config: Config) -> Task:
    """The sheet's task: pixels / 16, a perceptron, plain SGD."""
    data, model = dx.data.digits(), Digits()
    loss = dx.losses.classification(model.apply)
    measure = evaluation.on(loss, data.test)
    return Task(
        loss,
        optax.sgd(config.rate),
        nodes(config, data, config.seeds, config.local_steps),
        jax.vmap(jax.random.key)(config.seed + jnp.arange(config.seeds)),
        lambda key: model.init(key, data.example)["params"],
        (measure, measure),
        config.rounds,
        1,
    )


def images(config: Config) -> Task:
    """Fashion-MNIST; with BatchNorm the merged model's statistics are estimated afresh."""
    data = dx.data.fashion_mnist()
    if config.network == "resnet":
        module: nn.Module = dx.models.ResNet18(10, norm="batch", width=config.width)
        loss = dx.losses.classification(module)
        optimizer = dx.models.with_statistics(optax.sgd(config.rate))
    else:
        sizes = {"small": ((8, 16), 64), "cnn": ((32, 64), 128)}[config.network]
        module = dx.models.CNN(10, *sizes)
        loss = dx.losses.classification(module.apply)
        optimizer = optax.sgd(config.rate)

    def draw(key: jax.Array) -> Any:
        variables = module.init(key, data.example)
        return variables if config.network == "resnet" else variables["params"]

    local = evaluation.on(loss, data.test, examples=1000)
    merged = local
    if config.network == "resnet":
        merged = evaluation.recalibrated(local, module, data.train, batches=8)
    return Task(
        loss,
        optimizer,
        nodes(config, data, config.image_seeds, config.image_steps),
        jax.vmap(jax.random.key)(config.seed + jnp.arange(config.image_seeds)),
        draw,
        (local, merged),
        config.image_rounds,
        max(1, config.image_rounds // 10),
    )


def compiled(config: Config, task: Task, *, symmetric: bool = False) -> Callable[..., Curves]:
    """`(table of r, independent starts) -> curves [seeds, measurements]`, one program for all tables."""

    def one(lane: Any, sources: dx.SideBySide, table: jax.Array, measures: Any) -> Any:
        own, key, models = lane
        federation = sources.source(own)
        algorithm = dx.decentralized.single_merging(
            task.loss, task.optimizer, config.nodes, lambda t: table[t], symmetric=symmetric
        )
        with warnings.catch_warnings():
            # Meant: running statistics are mixed along, and those of the merged model estimated afresh.
            warnings.simplefilter("ignore", dx.models.AveragedStatistics)
            state = algorithm.init(key, jax.tree.map(lambda leaf: leaf[0], models))
        state = state._replace(clients=state.clients._replace(params=models))
        measure = evaluation.together(
            evaluation.client_models(measures[0]),
            evaluation.mean_model(measures[1]),
            evaluation.consensus,
        )

        def some(state: Any, start: jax.Array) -> Any:
            state, metrics = dx.rollout(algorithm, state, federation, key, task.every, start)
            measured = measure(state)
            kept = (
                measured["accuracy"],
                measured["mean_model_accuracy"],
                metrics["models_sent"].sum(),
                measured["consensus_distance"],
            )
            return state, kept

        starts = task.every * jnp.arange(task.rounds // task.every)
        return jax.lax.scan(some, state, starts)[1]

    @jax.jit
    def program(lanes: Any, *shared: Any) -> Any:
        return each(one, lanes, *shared)

    bytes_each = model_bytes(jax.eval_shape(task.draw, task.keys[0]))

    def run(table: np.ndarray, independent: bool = False) -> Curves:
        def start(key: jax.Array) -> Any:
            if independent:
                return jax.vmap(task.draw)(jax.random.split(key, config.nodes))
            return dx.replicate(task.draw(key), config.nodes)

        models = jax.vmap(start)(jax.vmap(lambda key: jax.random.fold_in(key, 1))(task.keys))
        lanes = task.sources.own, task.keys, models
        found = program(lanes, task.sources, jnp.asarray(table, jnp.float32), task.measures)
        curves = dict(zip(FAMILIAR, jax.device_get(found), strict=True))
        # One merge more, counted as what exact averaging sends in a round of gossip.
        once = bytes_each * (config.nodes - 1) / 1e6
        return curves | {"megabytes": megabytes(curves["sent"], bytes_each, config.nodes) + once}

    return run


def row(found: Curves) -> dict[str, float]:
    """What the table shows of one schedule."""
    return {
        "local": float(found["local"][:, -1].mean()),
        "std": float(found["local"][:, -1].std()),
        "merged": float(found["merged"][:, -1].mean()),
        "merged std": float(found["merged"][:, -1].std()),
        "models sent": float(found["sent"].sum(1).mean()),
    }


def late(found: Curves, key: str = "merged", last: int = 10) -> np.ndarray:
    """The mean of the last measurements, per seed: merged accuracies jitter from round to round."""
    return found[key][:, -last:].mean(1)


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """All schedules on the digits, with equal draws."""
    rounds, everyone = config.rounds, config.nodes - 1.0
    ticks = np.arange(rounds)
    sparse = np.full(rounds, config.r)
    tables: dict[str, tuple[np.ndarray, bool]] = {
        "no communication": (np.zeros(rounds), False),
        "sparse": (sparse, False),
        "dense window first": (np.where(ticks < config.dense, everyone, sparse), False),
        "dense window last": (np.where(ticks >= rounds - config.dense, everyone, sparse), False),
        "sparse, late growth": (
            np.asarray(
                jax.vmap(intensity.late_growth(config.r, everyone, rounds))(jnp.asarray(ticks))
            ),
            False,
        ),
        "dense every round (FedAvg)": (np.full(rounds, everyone), False),
        "own starts, no communication": (np.zeros(rounds), True),
        "own starts, sparse": (sparse, True),
    }
    task = digits(config)
    run = compiled(config, task)
    found = {
        name: stage(name, lambda table=table, own=own: run(table, own))
        for name, (table, own) in tables.items()
    }
    found["sparse, pairs"] = stage(
        "sparse, pairs", lambda: compiled(config, task, symmetric=True)(sparse)
    )
    rows = {name: row(curves) for name, curves in found.items()}
    return Summary(rows, _claims(found), {"merging": _draw(found, np.arange(1, rounds + 1))})


def on_images(config: Config, stage: Stage = in_memory) -> Summary:
    """Three of the schedules on Fashion-MNIST."""
    task = images(config)
    run = compiled(config, task)
    count = config.image_rounds
    tables = {
        "no communication": np.zeros(count),
        "sparse": np.full(count, config.r),
        "dense every round (FedAvg)": np.full(count, config.nodes - 1.0),
    }
    seen = {
        name: stage(f"{name} on Fashion-MNIST", lambda table=table: run(table))
        for name, table in tables.items()
    }
    rows = {f"Fashion-MNIST, {config.network}: {name}": row(c) for name, c in seen.items()}
    gain = late(seen["sparse"], last=3) - late(seen["sparse"], "local", last=3)
    apart = late(seen["sparse"], last=3) - late(seen["no communication"], last=3)
    gains, less = statements(config)
    claims = [
        Claim(gains, bool((gain >= 0.1).all()), gain.tolist(), 0.1),
        Claim(less, bool((apart > 0).all()), apart.tolist(), 0.0),
    ]
    shown = task.every * np.arange(1, count // task.every + 1)
    return Summary(rows, claims, {"fashion_mnist": _draw(seen, shown)})


def statements(config: Config) -> list[str]:
    """What is claimed of Fashion-MNIST."""
    return [
        f"Fashion-MNIST, {config.network}: merging gains at least 0.1, every seed",
        f"Fashion-MNIST, {config.network}: without communication merging gives less",
    ]


def _claims(found: dict[str, Curves]) -> list[Claim]:
    """What is said of merging, on every seed or, where single draws decide, on their mean."""
    sparse, none = found["sparse"], found["no communication"]
    gain = late(sparse) - late(sparse, "local")
    behind = late(found["dense every round (FedAvg)"]) - late(sparse)
    apart = late(sparse) - late(none)
    window = (
        found["dense window last"]["local"][:, -1] - found["dense window first"]["local"][:, -1]
    )
    starts = late(none) - late(found["own starts, no communication"])

    def every(text: str, values: np.ndarray, least: float) -> Claim:
        return Claim(f"{text}, every seed", bool((values >= least).all()), values.tolist(), least)

    def mean(text: str, value: np.ndarray, holds: bool, limit: float) -> Claim:
        return Claim(
            f"{text}, mean over seeds", holds, [float(value.mean()), *value.tolist()], limit
        )

    return [
        every("merging sparse gossip gains at least 0.1 accuracy", gain, 0.1),
        # Of eight draws of the laws one or two lie beyond either limit.
        mean("the merged model is within 0.1 of FedAvg's", behind, bool(behind.mean() <= 0.1), 0.1),
        every("without any communication merging gives at least 0.08 less", apart, 0.08),
        every("a dense window at the end beats one at the start by 0.1 locally", window, 0.1),
        mean(
            "own starts without communication merge at least 0.1 worse",
            starts,
            bool(starts.mean() >= 0.1),
            0.1,
        ),
    ]


def _draw(found: dict[str, Curves], rounds: np.ndarray) -> Any:
    with figure(12.0, 4.8, ncols=3, sharey=True) as (drawn, axes):
        own = looks(found)
        for name, curves in found.items():
            sent = curves["megabytes"].mean(0)
            for panel, xs, key in zip(
                axes, (rounds, rounds, sent), ("local", "merged", "merged"), strict=True
            ):
                curve(panel, xs, curves[key], own[name], name)
        axes[0].set(xlabel="round", ylabel="test accuracy", ylim=(0, 1), title="local models, mean")
        axes[1].set(xlabel="round", title="their mean, if merged at this round")
        log_megabytes(axes[2], "megabytes sent per node, merge included")
        axes[2].set_title("their mean, over what had been sent")
        for panel in axes[:2]:
            panel.xaxis.get_major_locator().set_params(integer=True)
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


STUDY = Study(
    Config,
    (
        Part("digits", on_digits, needs=(DIGITS,)),
        Part(
            "Fashion-MNIST",
            on_images,
            needs=(FASHION_MNIST,),
            states=statements,
            wanted=lambda config: config.network != "none",
        ),
    ),
    quick=Config(
        rounds=10, local_steps=5, dense=2, seeds=1, image_rounds=4, image_steps=3, image_seeds=1
    ),
    pictures=(
        Picture(
            name="merging",
            file="single_merging.png",
            claim="Rare gossip keeps models mergeable, and communication late in a run is worth most.",
            data="digits (scikit-learn), {config.nodes} nodes, Dirichlet {config.alpha:g}",
            bands="bands: least to largest of {config.seeds} seeds",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
