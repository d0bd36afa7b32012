"""Merging networks that were trained apart: DIMAT against plain averaging, and gossip at every step."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import dflax as dx
from dflax import decentralized, evaluation, matching, topology
from experiments.tasks.inputs import DIGITS, FASHION_MNIST
from experiments.tasks.skewed_digits import drawn_by
from experiments.tools.command import main
from experiments.tools.curves import spread
from experiments.tools.figures import curve, figure, log_megabytes, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.lanes import each
from experiments.tools.study import Claim, Part, Picture, Study, Summary

Curves = dict[str, np.ndarray]
MEASURED = ("merged", "trained", "similarity", "fixed", "sent")
NAMES = {
    "plain": "WA",
    "activations": "DIMAT, activations",
    "weights": "DIMAT, weights",
    "anchored": "DIMAT, weights, anchored",
}
LOOKS = looks(NAMES)
LINES = {"merged": "-", "trained": ":"}
# On the complete graph everyone hears the anchor anyway.
ON = {"full": tuple(NAMES), "ring": ("plain", "activations", "weights")}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      nodes: n agents, each with a network of its own draw.
      width: of the two hidden layers.
      examples: training examples of each agent.
      pretraining: local steps before the first merge.
      merges: merges, each followed by local steps.
      long: local steps after a merge.
      short: the same, in the shorter runs on skewed labels.
      batch_size: examples per local step.
      first_rate: learning rate of the pre-training, with momentum 0.9.
      rate: learning rate between merges, momentum from zero every time.
      alpha: Dirichlet concentration of the agents' labels.
      seeds: repetitions with examples, starts and minibatches of their own.
      seed: of the first one.
      network: on Fashion-MNIST afterwards, "cnn" or "none".
      channels: of the CNN's first layer, doubled in the second.
      image_pretraining: as above, on the images.
      image_merges: as above.
      image_steps: as above.
      image_seeds: as above.
    """

    nodes: int = 5
    width: int = 128
    examples: int = 300
    pretraining: int = 600
    merges: int = 15
    long: int = 40
    short: int = 10
    batch_size: int = 32
    first_rate: float = 0.05
    rate: float = 0.01
    alpha: float = 0.5
    seeds: int = 3
    seed: int = 0
    network: Literal["cnn", "none"] = "cnn"
    channels: int = 8
    image_pretraining: int = 150
    image_merges: int = 4
    image_steps: int = 10
    image_seeds: int = 2


class Perceptron(nn.Module):
    """64-width-width-10 with He-normal kernels."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[B, 10]`."""
        he = nn.initializers.he_normal()
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width, kernel_init=he)(x))
        return nn.Dense(10, kernel_init=he)(x)


class Problems(NamedTuple):
    """P problems of equal shapes, with the agents as their pre-training leaves them.

    Attributes:
      data: the one data set.
      model: a linen module.
      loss: of the model.
      symmetries: of the model.
      partitions: P of them.
      keys: `[P]`.
      models: leaves `[P, n, ...]`.
      measure: mean test accuracy of the agents' models.
      before: `[P]` that accuracy before any merge.
    """

    data: dx.data.Split
    model: Any
    loss: Any
    symmetries: matching.Symmetries
    partitions: list[dx.data.Partition]
    keys: jax.Array
    models: Any
    measure: Any
    before: np.ndarray

    def some(self, places: slice) -> "Problems":
        """A few of them."""
        keys, models, before = jax.tree.map(
            lambda leaf: leaf[places], (self.keys, self.models, self.before)
        )
        partitions = self.partitions[places]
        return self._replace(partitions=partitions, keys=keys, models=models, before=before)


def dealt(labels: np.ndarray, config: Config, alpha: float | None, seed: int) -> Any:
    """Disjoint random sets for the agents, or sets drawn with replacement by label laws of their own."""
    generator = np.random.default_rng([seed, 0 if alpha is None else round(1000 * alpha)])
    n, size = config.nodes, config.examples
    if alpha is None:
        owned = list(generator.permutation(len(labels))[: n * size].reshape(n, size))
    else:
        laws = generator.dirichlet(np.full(10, alpha), n)
        owned = drawn_by(laws, labels, size, generator)
    return dx.data.from_indices(owned, seed=seed)


def pretrained(
    config: Config,
    data: dx.data.Split,
    model: Any,
    partitions: list[Any],
    seeds: list[int],
    *,
    steps: int,
    stage: Stage,
    examples: int | None = None,
) -> Problems:
    """The problems of these partitions; every agent starts from its own weights and trains alone."""
    loss = dx.losses.classification(model.apply)
    inputs = data.train.fetch(jnp.arange(2)).inputs

    def fresh(key: jax.Array) -> Any:
        return model.init(key, inputs)["params"]

    shapes = jax.eval_shape(fresh, jax.random.key(0))
    measure = evaluation.client_models(evaluation.on(loss, data.test, examples=examples))
    alone = decentralized.dimat(loss, optax.sgd(config.first_rate, 0.9), np.eye(config.nodes), None)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    sources = federations(config, data, partitions, steps)

    def one(lane: tuple[Any, jax.Array], sources: dx.SideBySide, measure: Any) -> Any:
        own, key = lane
        source = sources.source(own)
        start_key, run_key = jax.random.split(jax.random.fold_in(key, 1))
        state, _ = alone.step(alone.init(start_key, fresh), source.draw(run_key, 0))
        return state.clients.params, measure(state)["accuracy"]

    program = jax.jit(lambda lanes, *shared: each(one, lanes, *shared))
    models, before = stage(
        f"pre-training on {data.name}", lambda: program((sources.own, keys), sources, measure)
    )
    return Problems(
        data,
        model,
        loss,
        matching.symmetries(model, shapes, inputs),
        partitions,
        keys,
        jax.tree.map(jnp.asarray, models),
        measure,
        np.asarray(before),
    )


def federations(
    config: Config, data: dx.data.Split, partitions: list[Any], steps: int
) -> dx.SideBySide:
    """Equally many steps for all agents, minibatches with replacement."""
    first = dx.Federation(
        data,
        partitions[0],
        batch_size=config.batch_size,
        local_steps=steps,
        replacement=True,
    )
    return dx.side_by_side([first.replace(partition=partition) for partition in partitions])


def merging(
    config: Config, given: Problems, graph: topology.Graph, way: str, steps: int, merges: int
) -> Curves:
    """Accuracies after every merge and after the steps that follow, `[P, merges]`.

    DIMAT's round taken apart, so that what it merges can be measured: its mixer, then its local steps.
    """
    known = {
        "plain": None,
        "activations": matching.by_activations(given.model, given.symmetries),
        "weights": matching.by_weights(given.symmetries),
        "anchored": matching.by_weights(given.symmetries),
    }
    compared = min(config.examples, 256)
    mixer = decentralized.dimat_mixer(
        graph, known[way], batch_size=compared, anchored=way == "anchored"
    )
    training = decentralized.dimat(
        given.loss, optax.sgd(config.rate, 0.9), np.eye(config.nodes), None
    )

    def one(lane: tuple[Any, jax.Array, Any], sources: dx.SideBySide, measure: Any) -> Any:
        own, key, models = lane
        source = sources.source(own)
        state = started(training, models)

        def iteration(carry: Any, t: jax.Array) -> Any:
            models, mixing = carry
            round = source.draw(key, t)
            here = dx.gossip.Mixing(round.key, t, round=round)
            merged, mixing, metrics = mixer.apply(models, mixing, here)
            held = state._replace(clients=state.clients._replace(params=merged))
            after, _ = training.step(held, round)
            nothing = jnp.zeros(())
            found = (
                measure(held)["accuracy"],
                measure(after)["accuracy"],
                metrics.get("similarity", nothing),
                metrics.get("fixed_units", nothing),
                metrics["models_sent"],
            )
            return (after.clients.params, mixing), found

        return jax.lax.scan(iteration, (models, mixer.init(models)), jnp.arange(merges))[1]

    sources = federations(config, given.data, given.partitions, steps)
    program = jax.jit(lambda lanes, *shared: each(one, lanes, *shared))
    found = program((sources.own, given.keys, given.models), sources, given.measure)
    return dict(zip(MEASURED, jax.device_get(found), strict=True))


def stepping(
    config: Config, given: Problems, algorithm: dx.Algorithm, steps: int, merges: int
) -> Curves:
    """Accuracies of a method that talks at every local step, `[P, merges]`, at equal gradient steps."""

    def one(lane: tuple[Any, jax.Array, Any], sources: dx.SideBySide, measure: Any) -> Any:
        own, key, models = lane
        source = sources.source(own)

        def some(state: Any, start: jax.Array) -> Any:
            state, metrics = dx.rollout(algorithm, state, source, key, steps, start)
            return state, (measure(state)["accuracy"], metrics["models_sent"].sum())

        return jax.lax.scan(some, started(algorithm, models), steps * jnp.arange(merges))[1]

    sources = federations(config, given.data, given.partitions, 1)
    program = jax.jit(lambda lanes, *shared: each(one, lanes, *shared))
    lanes = sources.own, given.keys, given.models
    trained, sent = program(lanes, sources, given.measure)
    return {"trained": np.asarray(trained), "sent": np.asarray(sent)}


def started(algorithm: dx.Algorithm, models: Any) -> Any:
    """The algorithm's first state, with these models."""
    state = algorithm.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], models))
    return state._replace(clients=state.clients._replace(params=models))


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """Perceptrons on digits with equal and with skewed labels, on two graphs."""
    data = dx.data.digits(test_fraction=297 / 1797)
    labels = np.asarray(data.labels)
    seeds = [config.seed + s for s in range(config.seeds)]
    laws: list[float | None] = [None] * config.seeds + [config.alpha] * config.seeds
    both = pretrained(
        config,
        data,
        Perceptron(config.width),
        [dealt(labels, config, law, s) for law, s in zip(laws, [*seeds, *seeds], strict=True)],
        [*seeds, *seeds],
        steps=config.pretraining,
        stage=stage,
    )
    skewed = both.some(slice(config.seeds, None))
    n = config.nodes
    graphs = {"full": topology.complete(n), "ring": topology.ring(n)}
    found: dict[tuple[str, str, str], Curves] = {}
    for name, graph in graphs.items():
        for way in ON[name]:
            curves = stage(
                f"{NAMES[way]}, {name}",
                lambda graph=graph, way=way: merging(
                    config, both, graph, way, config.long, config.merges
                ),
            )
            found["iid", name, way] = _rows(curves, slice(0, config.seeds))
            found["skewed", name, way] = _rows(curves, slice(config.seeds, None))
        for way in ("plain", "activations"):
            found["short", name, way] = stage(
                f"{NAMES[way]}, {name}, few steps",
                lambda graph=graph, way=way: merging(
                    config, skewed, graph, way, config.short, config.merges
                ),
            )
    momentum = optax.sgd(config.rate, 0.9)
    chord = np.array([*((i, (i + 1) % n) for i in range(n)), (0, 2)])
    directed = topology.from_edges(n, chord, directed=True, name="directed ring with a chord")
    steady = {
        "CDMSGD, ring": decentralized.dpsgd(both.loss, momentum, dx.gossip.ring(n)),
        "SGP, directed ring with a chord": decentralized.sgp(both.loss, momentum, directed),
    }
    stepped: dict[str, dict[str, Curves]] = {"iid": {}, "skewed": {}}
    for name, algorithm in steady.items():
        curves = stage(
            name,
            lambda algorithm=algorithm: stepping(
                config, both, algorithm, config.long, config.merges
            ),
        )
        stepped["iid"][name] = _rows(curves, slice(0, config.seeds))
        stepped["skewed"][name] = _rows(curves, slice(config.seeds, None))

    titles = {
        "iid": "equal labels",
        "skewed": f"Dirichlet {config.alpha:g}",
        "short": f"Dirichlet {config.alpha:g}, {config.short} steps",
    }
    rows = {
        f"{NAMES[way]}, {graph}; {titles[task]}": row(curves)
        for (task, graph, way), curves in found.items()
    }
    rows |= {
        f"{name}; {titles[task]}": row(curves)
        for task, methods in stepped.items()
        for name, curves in methods.items()
    }
    tables = {
        title: [name for name in rows if name.endswith(f"; {title}")] for title in titles.values()
    }
    claims = _claims(config, found, both)
    megabytes = 4e-6 * sum(leaf[0, 0].size for leaf in jax.tree.leaves(both.models))
    figures = {
        "merges": _draw_merges(found, titles, both.before, config.seeds),
        "megabytes": _draw_megabytes(found, stepped, megabytes),
    }
    return Summary(rows, claims, figures, tables)


FIRST_MERGE = "Fashion-MNIST, CNN: the first merge beats plain averaging by 0.15"


def on_images(config: Config, stage: Stage = in_memory) -> Summary:
    """A CNN on Fashion-MNIST with equal labels, on the complete graph."""
    graph = topology.complete(config.nodes)
    data = dx.data.fashion_mnist()
    labels = np.asarray(data.labels)
    seeds = [config.seed + s for s in range(config.image_seeds)]
    model = dx.models.CNN(10, (config.channels, 2 * config.channels), 8 * config.channels)
    given = pretrained(
        config,
        data,
        model,
        [dx.data.iid(labels, config.nodes, seed=s) for s in seeds],
        seeds,
        steps=config.image_pretraining,
        stage=stage,
        examples=1000,
    )
    seen = {
        way: stage(
            f"{NAMES[way]} on Fashion-MNIST",
            lambda way=way: merging(
                config, given, graph, way, config.image_steps, config.image_merges
            ),
        )
        for way in ON["ring"]
    }
    gains = seen["activations"]["merged"][:, 0] - seen["plain"]["merged"][:, 0]
    return Summary(
        {f"{NAMES[way]}, full; Fashion-MNIST": row(curves) for way, curves in seen.items()},
        [_every(FIRST_MERGE, gains, 0.15)],
        {"fashion_mnist": _draw_images(seen, given.before)},
    )


def row(curves: Curves) -> dict[str, Any]:
    """What the table shows: the first and the last merge, means and deviations over seeds."""
    last = curves["trained"].shape[1] - 1
    shown: dict[str, Any] = {}
    for merge in (0, last):
        for stage in ("merged", "trained"):
            if stage in curves:
                shown[f"{stage}, {merge}"] = spread(curves[stage][:, merge])
    shown["sent"] = int(curves["sent"].sum(1).mean())
    if "similarity" in curves:
        first, final = curves["similarity"].mean(0)[[0, -1]]
        shown[f"similarity, 0 and {last}"] = f"{first:.2f}, {final:.2f}"
        shown["fixed, 0"] = float(curves["fixed"][:, 0].mean())
    return shown


def _rows(curves: Curves, places: slice) -> Curves:
    return {name: values[places] for name, values in curves.items()}


def _every(text: str, values: np.ndarray, least: float) -> Claim:
    return Claim(f"{text}, every seed", bool((values >= least).all()), values.tolist(), least)


def _claims(config: Config, found: dict[tuple[str, str, str], Curves], given: Problems) -> Any:
    claims = []
    for graph in ("full", "ring"):

        def gain(
            task: str, stage: str, merge: int, way: str = "activations", graph: str = graph
        ) -> np.ndarray:
            values = found[task, graph, way][stage] - found[task, graph, "plain"][stage]
            return values[:, merge]

        for way in ("activations", "weights"):
            claims.append(
                _every(
                    f"{graph}, {NAMES[way]}: the first merge beats plain averaging by 0.15",
                    gain("iid", "merged", 0, way),
                    0.15,
                )
            )
        after = gain("iid", "trained", 0)
        claims.append(
            Claim(
                f"{graph}: after the steps that follow, still 0.02 better, mean over seeds",
                bool(after.mean() >= 0.02),
                [float(after.mean()), *after.tolist()],
                0.02,
            )
        )
        apart = float(abs(gain("iid", "merged", -1).mean()))
        claims.append(
            Claim(f"{graph}: by the last merge both are within 0.01", apart <= 0.01, apart, 0.01)
        )
        claims.append(
            _every(
                f"{graph}, skewed labels: the first merge beats plain averaging by 0.05",
                gain("skewed", "merged", 0),
                0.05,
            )
        )
        for merge in (0, 1):
            claims.append(
                _every(
                    f"{graph}, skewed labels, {config.short} steps: 0.15 better after training, "
                    f"merge {merge}",
                    gain("short", "trained", merge),
                    0.15,
                )
            )
    behind = (found["iid", "full", "plain"]["merged"] - found["iid", "full", "anchored"]["merged"])[
        :, -1
    ]
    pairwise = (
        found["iid", "full", "anchored"]["merged"] - found["iid", "full", "weights"]["merged"]
    )[:, -1]
    claims += [
        Claim(
            "full, weights, anchored: by the last merge within 0.01 of plain averaging, mean over seeds",
            bool(abs(behind.mean()) <= 0.01),
            [float(behind.mean()), *behind.tolist()],
            0.01,
        ),
        _every("full, weights: pairs matched one by one are then 0.03 below", pairwise, 0.03),
    ]
    return claims


def _draw_merges(
    found: dict[tuple[str, str, str], Curves],
    titles: dict[str, str],
    before: np.ndarray,
    seeds: int,
) -> Any:
    """Accuracy after merge (solid) and after training (dotted) over merges, tasks by graphs."""
    with figure(9.6, 6.4, nrows=2, ncols=3, sharex=True, sharey="col") as (drawn, axes):
        for place, task in enumerate(titles):
            alone = before[:seeds] if task == "iid" else before[seeds:]
            for graph, panel in zip(("full", "ring"), axes[:, place], strict=True):
                for way, label in NAMES.items():
                    if (task, graph, way) not in found:
                        continue
                    curves = found[task, graph, way]
                    ticks = np.arange(curves["merged"].shape[1])
                    for stage, line in LINES.items():
                        curve(
                            panel,
                            ticks,
                            curves[stage],
                            LOOKS[way],
                            f"{label}, after {'merge' if stage == 'merged' else 'training'}",
                            linestyle=line,
                        )
                panel.axhline(alone.mean(), color="0.5", linewidth=0.8, label="before any merge")
                panel.set_title(f"{titles[task]}, {graph}", fontsize=10)
            axes[1, place].set_xlabel("merges before this one")
        for panel in axes[:, 0]:
            panel.set_ylabel("test accuracy")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=3)
    return drawn


def _draw_megabytes(
    found: dict[tuple[str, str, str], Curves],
    stepped: dict[str, dict[str, Curves]],
    megabytes: float,
) -> Any:
    """Accuracy after training over what all agents have sent, on the ring."""
    with figure(9.0, 3.9, ncols=2) as (drawn, axes):
        for panel, task in zip(axes, ("iid", "skewed"), strict=True):
            shown = {NAMES[way]: found[task, "ring", way] for way in ON["ring"]}
            shown |= stepped[task]
            own = looks(shown)
            for name, curves in shown.items():
                sent = megabytes * np.cumsum(curves["sent"], axis=1).mean(0)
                curve(panel, sent, curves["trained"], own[name], name)
            log_megabytes(panel, "megabytes sent by all agents")
        axes[0].set(ylabel="test accuracy after training", title="equal labels, ring")
        axes[1].set(title="skewed labels, ring")
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def _draw_images(seen: dict[str, Curves], before: np.ndarray) -> Any:
    with figure(7.2, 4.0) as (drawn, axes):
        for way, curves in seen.items():
            ticks = np.arange(curves["merged"].shape[1])
            for stage, after in (("merged", "merge"), ("trained", "training")):
                label = f"{NAMES[way]}, after {after}"
                curve(axes, ticks, curves[stage], LOOKS[way], label, linestyle=LINES[stage])
            axes.set_xticks(ticks)
        axes.axhline(before.mean(), color="0.5", linewidth=0.8, label="before any merge")
        axes.set(xlabel="merges before this one", ylabel="test accuracy")
        axes.set_title("Fashion-MNIST, CNN, complete graph")
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


STUDY = Study(
    Config,
    (
        Part("digits", on_digits, needs=(DIGITS,)),
        Part(
            "Fashion-MNIST",
            on_images,
            needs=(FASHION_MNIST,),
            states=lambda config: [f"{FIRST_MERGE}, every seed"],
            wanted=lambda config: config.network == "cnn",
        ),
    ),
    quick=Config(
        width=16,
        pretraining=30,
        merges=2,
        long=5,
        short=2,
        seeds=1,
        image_pretraining=5,
        image_merges=2,
        image_steps=2,
        image_seeds=1,
    ),
    seconds=215,
    pictures=(
        Picture(
            name="merges",
            file="dimat.png",
            claim=(
                "Networks trained apart merge well at once if their units are matched; "
                "plain averaging (WA) needs some merges and may end ahead of it, not of "
                "matching all to one anchor."
            ),
            data="digits (scikit-learn), {config.nodes} agents with {config.examples} examples each",
            bands="bands: least to largest of {config.seeds} seeds",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
