"""Perceptrons of six sizes and three generations on scikit-learn's digits, and a larger ensemble."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from experiments.tools.lanes import each, stacked

SIZES = {
    "1k": (13,),
    "4k": (48,),
    "9k": (64, 64),
    "28k": (160, 100),
    "97k": (300, 250),
    "472k": (700, 600),
}
GENERATIONS = ("few steps", "more steps", "distilled")
NAMES = tuple(f"{size}, {generation}" for size in SIZES for generation in GENERATIONS)
MEMBERS, BATCH, SOFTNESS = 3, 32, 3.0
# Images that the models learn from, and that the ensemble learns from; routers learn from the rest.
LEARNED, SEEN = 500, 1000


class Answers(NamedTuple):
    """What all models answer, by seed.

    Attributes:
      right: `[S, M, Q]` 0 or 1, of the models of `NAMES` on the test images.
      frontier: `[S, Q]` of the ensemble.
      known: `[S, M, N]` the same on images that no model learned from, for routers to learn from.
      known_frontier: `[S, N]`.
      clues: `[S, Q, 10]` the sorted log-probabilities of the smallest distilled model, test images.
      known_clues: `[S, N, 10]`.
      labels: `[S, Q]` classes of the test images.
    """

    right: Any
    frontier: Any
    known: Any
    known_frontier: Any
    clues: Any
    known_clues: Any
    labels: Any


def parameters(hidden: tuple[int, ...]) -> int:
    """Weights and biases of a perceptron from 64 pixels to 10 classes."""
    widths = (64, *hidden, 10)
    return sum(a * b + b for a, b in itertools.pairwise(widths))


def started(hidden: tuple[int, ...], seed: tuple[int, ...]) -> Any:
    """Weights of variance 2 / inputs, drawn on the host."""
    generator, widths = np.random.default_rng(seed), (64, *hidden, 10)
    return [
        (
            generator.normal(size=(a, b)).astype(np.float32) * (2 / a) ** 0.5,
            np.zeros(b, np.float32),
        )
        for a, b in itertools.pairwise(widths)
    ]


def scores(params: Any, inputs: Any) -> Any:
    """Class scores of images `[..., 64]`."""
    for place, (kernel, bias) in enumerate(params):
        inputs = (jax.nn.relu(inputs) if place else inputs) @ kernel + bias
    return inputs


def ensemble(members: Any, inputs: Any) -> Any:
    """The mean of the scores of several networks, whose axis leads."""
    return jax.vmap(scores, in_axes=(0, None))(members, inputs).mean(0)


@functools.partial(jax.jit, static_argnames=("few",))
def _trained(lanes: Any, few: int) -> Any:
    """Weights after `few` steps of Adam and after all of them, of each lane."""

    def run(lane: Any) -> Any:
        params, inputs, targets, order = lane
        adam = optax.adam(3e-3)

        def loss(params: Any, rows: Any) -> Any:
            return optax.softmax_cross_entropy(scores(params, inputs[rows]), targets[rows]).mean()

        def step(carry: Any, rows: Any) -> Any:
            params, memory = carry
            updates, memory = adam.update(jax.grad(loss)(params, rows), memory)
            return (optax.apply_updates(params, updates), memory), None

        early = jax.lax.scan(step, (params, adam.init(params)), order[:few])[0]
        return early[0], jax.lax.scan(step, early, order[few:])[0][0]

    return each(run, lanes)


def answers(seeds: range, *, few: int, steps: int) -> Answers:
    """Trains all models of all seeds; each seed splits the images anew."""
    splits = [dx.data.digits(seed=seed) for seed in seeds]
    train, test = (
        jnp.stack([_flat(getattr(split, part)) for split in splits]) for part in ("train", "test")
    )
    train_labels, labels = (
        np.stack([np.asarray(getattr(split, part).labels) for split in splits])
        for part in ("train", "test")
    )
    known_inputs, known_labels = train[:, SEEN:], train_labels[:, SEEN:]
    hard = jax.nn.one_hot(train_labels, 10)

    def train_all(hidden: tuple[int, ...], targets: Any, tag: int, rows: int = LEARNED) -> Any:
        starts = stacked([started(hidden, (seed, tag)) for seed in seeds])
        orders = [
            np.random.default_rng((seed, 1)).integers(0, rows, (steps, BATCH)) for seed in seeds
        ]
        return _trained((starts, train, targets, jnp.asarray(orders)), few)

    largest = SIZES["472k"]
    members = stacked([train_all(largest, hard, 100 + n, SEEN)[1] for n in range(MEMBERS)])
    frontier = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), members)
    of_frontier = jax.jit(jax.vmap(ensemble))
    soft = jax.nn.softmax(of_frontier(frontier, train) / SOFTNESS)
    of_model = jax.jit(jax.vmap(scores))
    tables: list[list[Any]] = [[], []]
    for number, hidden in enumerate(SIZES.values()):
        early, late = train_all(hidden, hard, number)
        for params in (early, late, train_all(hidden, soft, number)[1]):
            for table, images, wanted in (
                (tables[0], test, labels),
                (tables[1], known_inputs, known_labels),
            ):
                table.append(np.argmax(of_model(params, images), -1) == wanted)
        if number == 0:
            clues = [
                np.sort(jax.nn.log_softmax(of_model(params, images)), -1)
                for images in (test, known_inputs)
            ]
    right, known = (np.stack(table, 1).astype(np.float32) for table in tables)
    sure = np.argmax(of_frontier(frontier, test), -1) == labels
    known_sure = np.argmax(of_frontier(frontier, known_inputs), -1) == known_labels
    return Answers(
        right,
        sure.astype(np.float32),
        known,
        known_sure.astype(np.float32),
        clues[0],
        clues[1],
        labels.astype(np.int32),
    )


def _flat(data: dx.data.Dataset) -> jax.Array:
    """All images as vectors of real numbers."""
    return data.fetch(jnp.arange(len(data))).inputs.reshape(len(data), -1)
