"""Gossip between models that start from draws of their own: what keeping their variance is worth."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import dflax as dx
from dflax import aggregation, evaluation, gossip, topology
from experiments.tasks.inputs import DIGITS
from experiments.tools.command import main
from experiments.tools.figures import curve, figure, log_megabytes, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Picture, Study, Summary
from experiments.tools.traffic import megabytes, model_bytes

Curves = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      nodes: n, each with its share of scikit-learn's digits.
      degree: of the random regular graph.
      layers: hidden layers of 64 units, one less than the model has kernels.
      own_weight: beta, what a node gives to its own model.
      rounds: one minibatch and one mixing each.
      batch_size: examples per minibatch, drawn with replacement.
      rate: of SGD with momentum 0.9, whose buffers are kept and not mixed.
      near_iid: Dirichlet concentration of the main comparison.
      skewed: Dirichlet concentration of the skewed split.
      share: of its weights that a node sends in sampled gossip, and in partitioned gossip, whose parts
        are 1 / share in number.
      target: accuracy that rounds are counted to.
      every: rounds between measurements.
      seeds: repetitions with splits, starts and minibatches of their own.
      seed: of the first repetition.
    """

    nodes: int = 50
    degree: int = 8
    layers: int = 3
    own_weight: float = 0.5
    rounds: int = 400
    batch_size: int = 64
    rate: float = 0.01
    near_iid: float = 100.0
    skewed: float = 0.5
    share: float = 0.25
    target: float = 0.8
    every: int = 5
    seeds: int = 3
    seed: int = 11


class Deep(nn.Module):
    """Hidden layers of 64 units with Glorot-uniform kernels and biases of 0."""

    layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[B, 10]`."""
        glorot = nn.initializers.glorot_uniform()
        x = x.reshape(x.shape[0], -1)
        for _ in range(self.layers):
            x = nn.relu(nn.Dense(64, kernel_init=glorot)(x))
        return nn.Dense(10, kernel_init=glorot)(x)


class Setting(NamedTuple):
    """One comparison: a graph, a split and a depth.

    Attributes:
      graph: who hears whom.
      alpha: Dirichlet concentration of the split.
      layers: hidden layers.
    """

    graph: topology.Graph
    alpha: float
    layers: int


def neighbours(graph: topology.Graph, own_weight: float) -> gossip.Mixer:
    """Plain gossip: `own_weight` for oneself, the rest evenly over the neighbours."""
    return gossip.mixer(graph, weights=functools.partial(topology.uniform, self_weight=own_weight))


def curves(config: Config, setting: Setting, mixer: gossip.Mixer, independent: bool) -> Curves:
    """Accuracy, variance ratio and megabytes over rounds, `[seeds, measurements]`, as one program."""
    data = dx.data.digits()
    model = Deep(setting.layers)
    loss = dx.losses.classification(model.apply)
    labels = np.asarray(data.labels)
    splits = [
        dx.data.dirichlet(labels, config.nodes, setting.alpha, seed=config.seed + seed)
        for seed in range(config.seeds)
    ]
    first = dx.Federation(
        data, splits[0], batch_size=config.batch_size, local_steps=1, replacement=True
    )
    sources = dx.side_by_side([first.replace(partition=split) for split in splits])
    algorithm = dx.decentralized.dfedavg(
        loss, optax.sgd(config.rate, momentum=0.9), mixer, keep_optimizer=True
    )
    measure = evaluation.client_models(evaluation.on(loss, data.test))

    def draw(key: jax.Array) -> Any:
        return model.init(key, data.example)["params"]

    def one(own: Any, key: jax.Array, sources: dx.SideBySide, measure: Callable[..., Any]) -> Any:
        federation = sources.source(own)
        start_key, run_key = jax.random.split(key)
        state = algorithm.init(start_key, draw if independent else draw(start_key))
        at_start = aggregation.variances(state.clients.params)

        def some(state: Any, start: jax.Array) -> Any:
            state, metrics = dx.rollout(algorithm, state, federation, run_key, config.every, start)
            ratio = (aggregation.variances(state.clients.params) / at_start).mean(0)
            return state, (measure(state)["accuracy"], ratio.min(), metrics["models_sent"].sum())

        starts = config.every * jnp.arange(config.rounds // config.every)
        return jax.lax.scan(some, state, starts)[1]

    keys = jax.vmap(jax.random.key)(config.seed + jnp.arange(config.seeds))
    program = jax.jit(jax.vmap(one, in_axes=(0, 0, None, None)))
    accuracy, ratio, sent = jax.device_get(program(sources.own, keys, sources, measure))
    # The corrected mixer's one number per kernel beside a model does not show.
    bytes_each = model_bytes(jax.eval_shape(draw, keys[0]))
    return {
        "accuracy": accuracy,
        "ratio": ratio,
        "megabytes": megabytes(sent, bytes_each, config.nodes),
    }


def reached(config: Config, found: Curves) -> np.ndarray:
    """Rounds to the target accuracy per seed; infinite where it is never reached."""
    hit = found["accuracy"] >= config.target
    return np.where(hit.any(1), config.every * (hit.argmax(1) + 1.0), np.inf)


def row(config: Config, found: Curves) -> dict[str, float]:
    """What the table shows of one method."""
    last = found["accuracy"][:, -1]
    return {
        f"rounds to {config.target:g}": float(reached(config, found).mean()),
        "accuracy": float(last.mean()),
        "std over seeds": float(last.std()),
        "least variance ratio": float(found["ratio"].min()),
    }


def every_method(config: Config, stage: Stage = in_memory) -> Summary:
    """Runs all methods on one graph, then correction against full averaging on others."""
    graph = topology.random_regular(config.nodes, config.degree, seed=config.seed)
    main_setting = Setting(graph, config.near_iid, config.layers)
    beta = config.own_weight
    average = gossip.complete(config.nodes)

    def corrected(graph: topology.Graph) -> gossip.Mixer:
        return gossip.variance_corrected(neighbours(graph, 0.0), beta)

    plain = neighbours(graph, beta)
    methods: dict[str, tuple[gossip.Mixer, bool]] = {
        "plain, own starts": (plain, True),
        "sampled, own starts": (gossip.sampled(plain, config.share), True),
        "partitioned, own starts": (gossip.partitioned(plain, round(1 / config.share)), True),
        "variance-corrected, own starts": (corrected(graph), True),
        "plain, one start": (plain, False),
        "FedAvg": (average, False),
    }
    found = {
        name: stage(
            name,
            lambda mixer=mixer, independent=independent: curves(
                config, main_setting, mixer, independent
            ),
        )
        for name, (mixer, independent) in methods.items()
    }
    rows = {name: row(config, result) for name, result in found.items()}

    others = {
        f"Dirichlet {config.skewed:g}": main_setting._replace(alpha=config.skewed),
        "one layer deeper": main_setting._replace(layers=config.layers + 1),
        "torus": main_setting._replace(graph=topology.torus(5, config.nodes // 5)),
        "complete": main_setting._replace(graph=topology.complete(config.nodes)),
    }
    pairs = {"regular": (found["variance-corrected, own starts"], found["FedAvg"])}
    references: dict[tuple[float, int], Curves] = {
        (main_setting.alpha, main_setting.layers): found["FedAvg"]
    }
    for name, setting in others.items():
        # Full averaging does not depend on the graph.
        kind = (setting.alpha, setting.layers)
        if kind not in references:
            references[kind] = stage(
                f"FedAvg, {name}",
                lambda setting=setting: curves(config, setting, average, False),
            )
            rows[f"FedAvg, {name}"] = row(config, references[kind])
        mine = stage(
            f"variance-corrected, {name}",
            lambda setting=setting: curves(config, setting, corrected(setting.graph), True),
        )
        rows[f"variance-corrected, {name}"] = row(config, mine)
        pairs[name] = (mine, references[kind])
    return Summary(rows, claims(config, found, pairs), {"variance": _draw(config, found)})


def claims(
    config: Config, found: dict[str, Curves], pairs: dict[str, tuple[Curves, Curves]]
) -> list[Claim]:
    """The statements of the paper that can be checked here, on every seed."""
    plain = found["plain, own starts"]
    law = float(plain["ratio"].min(1).mean() * config.nodes)
    rounds = {
        name: float((reached(config, mine) / reached(config, reference)).max())
        for name, (mine, reference) in pairs.items()
    }
    behind = {
        name: float((reference["accuracy"] - mine["accuracy"])[:, -1].max())
        for name, (mine, reference) in pairs.items()
    }
    kept = float(min(mine["ratio"].min() for mine, _ in pairs.values()))
    return [
        Claim(
            f"plain gossip between own starts never reaches {config.target:g} and ends below 0.2",
            bool(np.isinf(reached(config, plain)).all() and (plain["accuracy"][:, -1] < 0.2).all()),
            plain["accuracy"][:, -1].tolist(),
            0.2,
        ),
        Claim("its variance falls to 1/n, within 20%", 0.8 <= law <= 1.2, law, 1.0),
        Claim("with correction no kernel's variance falls below 0.98", kept >= 0.98, kept, 0.98),
        *(
            Claim(
                f"{name}: corrected, at most twice FedAvg's rounds, every seed",
                ratio <= 2.0,
                ratio,
                2.0,
            )
            for name, ratio in rounds.items()
        ),
        *(
            Claim(
                f"{name}: corrected, within 0.05 of FedAvg's end, every seed",
                gap <= 0.05,
                gap,
                0.05,
            )
            for name, gap in behind.items()
        ),
    ]


def _draw(config: Config, found: dict[str, Curves]) -> Any:
    rounds = config.every * (1 + np.arange(config.rounds // config.every))
    with figure(12.0, 4.2, ncols=3) as (drawn, axes):
        own = looks(found)
        for name, result in found.items():
            sent = result["megabytes"].mean(0)
            if name == "FedAvg":
                # With a server: one model there and one back, instead of one to everybody.
                sent = sent * 2 / (config.nodes - 1)
            for panel, xs, key in zip(
                axes, (rounds, sent, rounds), ("accuracy", "accuracy", "ratio"), strict=True
            ):
                curve(panel, xs, result[key], own[name], name)
        axes[0].set(xlabel="round", ylabel="mean accuracy of the nodes", ylim=(0, 1))
        log_megabytes(axes[1], "megabytes sent per node (FedAvg: and server)")
        axes[1].set(ylabel="mean accuracy of the nodes", ylim=(0, 1))
        axes[2].set(xlabel="round", ylabel="least variance of a kernel / at the start")
        axes[2].set_yscale("log")
        axes[2].axhline(1 / config.nodes, color="grey", linestyle=":", linewidth=1)
        axes[2].text(1.01, 1 / config.nodes, "1/n", transform=axes[2].get_yaxis_transform())
        handles, labels = axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=3)
    return drawn


STUDY = Study(
    Config,
    (Part("digits", every_method, needs=(DIGITS,)),),
    quick=Config(nodes=20, degree=4, rounds=20, seeds=1),
    seconds=180,
    pictures=(
        Picture(
            name="variance",
            file="variance_corrected.png",
            claim=(
                "Plain gossip between models from draws of their own takes their variance"
                " to 1/n and learns nothing; with the variance corrected they train "
                "nearly as fast as from one start."
            ),
            data=(
                "digits (scikit-learn), {config.nodes} nodes on a regular graph of degree"
                " {config.degree}, Dirichlet {config.near_iid:g}"
            ),
            bands="bands: least to largest of {config.seeds} seeds",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
