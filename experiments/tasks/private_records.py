"""Images of 20 clients, of which some lie, learned privately: the setting of DP-BREM's study.

Softmax regression from 0 on pixels and a constant 1. Each class is split over 20 clients by a Dirichlet
law of parameter 1; records are Poisson samples, and no minibatch overflows that an accountant would
notice. Clients 0 to 4 are the Byzantine ones. Of digits 1397 images train and 400 test, drawn anew for
every seed; Fashion-MNIST has its own test images.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import dflax as dx
from dflax import attacks, channel, privacy
from experiments.tools.lanes import each

CLIENTS, LIARS, TESTED, IMAGES = 20, 5, 400, 1797
HOSTILE = np.arange(CLIENTS) < LIARS
FASHION = "Fashion-MNIST"
Scale = Literal["standardised", "sixteenths"]


class Attack(NamedTuple):
    """What the liars do; one program has all of it.

    Attributes:
      factor: of an inner product on what the others send; 0: none.
      deviations: of ALIE; 0: none.
      flipped: 1 where they learn labels 9 - y instead, and are honest otherwise.
    """

    factor: float = 0.0
    deviations: float = 0.0
    flipped: int = 0


ATTACKS = {
    "none": Attack(),
    "IPM 2": Attack(factor=2.0),
    "IPM 20": Attack(factor=20.0),
    "label flip": Attack(flipped=1),
    "ALIE": Attack(deviations=-1.5),
}
Method = Callable[[Any, Any, channel.Channel], dx.Algorithm]


class Task(NamedTuple):
    """The clients of several seeds.

    Attributes:
      sources: S honest ones; of digits then S whose liars have flipped labels.
      federations: the S honest ones, one by one.
      tests: inputs `[N, F]` and labels `[N]` of all images that may test.
      tested: `[S, test]` which of them do.
      keys: `[S]` of the runs.
    """

    sources: dx.SideBySide
    federations: list[dx.Federation]
    tests: tuple[Array, Array]
    tested: Array
    keys: Array

    @property
    def smallest(self) -> Float[np.ndarray, " S"]:
        """B of the smallest client."""
        return np.array([np.asarray(f.partition.expected).min() for f in self.federations])


def digits(seeds: Sequence[int], scale: Scale = "standardised", probability: float = 0.3) -> Task:
    """The digits of clients of these seeds.

    Args:
      seeds: of splits, clients and everything random in a run.
      scale: of the pixels: mean 0 and deviation 1 over all images, or divided by 16.
      probability: p.
    """
    pixels, labels = _pixels(scale)
    # Every image twice, the second time with the label that liars learn.
    both = np.concatenate([pixels, pixels]), np.concatenate([labels, 9 - labels])
    data = dx.data.Dataset(jnp.asarray(both[0]), jnp.asarray(both[1]), classes=10, name="digits")
    honest, flipped, tests = [], [], []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        order = generator.permutation(IMAGES)
        tests.append(order[:TESTED])
        owned = _dealt(order[TESTED:], labels, generator)
        honest.append(owned)
        flipped.append([own + IMAGES if i < LIARS else own for i, own in enumerate(owned)])
    return _together(data, honest + flipped, seeds, probability, (pixels, labels), np.stack(tests))


def fashion(seeds: Sequence[int], images: int = 12_000, probability: float = 0.05) -> Task:
    """Fashion-MNIST at 14 x 14, on a scale that owes nothing to the clients' records.

    Args:
      seeds: of the images, the clients and everything random in a run.
      images: how many train.
      probability: p.
    """
    split = dx.data.fashion_mnist()

    def halved(part: dx.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
        images = np.asarray(part.inputs, np.float32).reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255
        flat = (images.reshape(len(images), -1) - 0.286) / 0.353
        inputs = np.concatenate([flat, np.ones((len(flat), 1), np.float32)], axis=1)
        return inputs, np.asarray(part.labels, np.int32)

    inputs, labels = halved(split.train)
    data = dx.data.Dataset(jnp.asarray(inputs), jnp.asarray(labels), classes=10, name=FASHION)
    owned = []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        chosen = generator.permutation(len(labels))[:images]
        owned.append(_dealt(chosen, labels, generator, images // (3 * CLIENTS)))
    tests = halved(split.test)
    everything = np.tile(np.arange(len(tests[1])), (len(seeds), 1))
    return _together(data, owned, seeds, probability, tests, everything)


def _together(
    data: dx.data.Dataset,
    owned: list[list[np.ndarray]],
    seeds: Sequence[int],
    probability: float,
    tests: tuple[np.ndarray, np.ndarray],
    tested: np.ndarray,
) -> Task:
    partitions = [
        privacy.poisson_sampled(
            dx.data.from_indices(lists, seed=seeds[place % len(seeds)]), probability
        )
        for place, lists in enumerate(owned)
    ]
    most = max(one.largest for one in partitions)
    deviations = 9.0 if most > 300 else 1e3
    places = max(privacy.places(one, probability, deviations) for one in partitions)
    alike = [dataclasses.replace(one, largest=most) for one in partitions]
    first = dx.Federation(data, alike[0], batch_size=places, local_steps=1)
    sources = [first.replace(partition=one) for one in alike]
    return Task(
        dx.side_by_side(sources),
        sources[: len(seeds)],
        (jnp.asarray(tests[0]), jnp.asarray(tests[1])),
        jnp.asarray(tested),
        jax.vmap(jax.random.key)(jnp.asarray(seeds)),
    )


def _pixels(scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    if scale == "standardised":
        deviation = raw.std(0)
        raw = (raw - raw.mean(0)) / np.where(deviation > 0, deviation, 1)
    else:
        raw = raw / 16
    inputs = np.concatenate([raw, np.ones((len(raw), 1))], axis=1)
    return inputs.astype(np.float32), labels.astype(np.int32)


def _dealt(
    images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, least: int = 30
) -> list[np.ndarray]:
    """Each class split over the clients in proportions from a Dirichlet law; everybody has some."""
    while True:
        owned: list[list[int]] = [[] for _ in range(CLIENTS)]
        for digit in range(10):
            members = generator.permutation(images[labels[images] == digit])
            cuts = np.cumsum(generator.dirichlet(np.ones(CLIENTS)))[:-1] * len(members)
            for own, part in zip(owned, np.split(members, cuts.astype(int)), strict=True):
                own.extend(part)
        if min(map(len, owned)) >= least:
            return [np.array(own) for own in owned]


def loss(params: Array, batch: dx.data.Batch, key: Any) -> Any:
    """Softmax regression; params are `[F, 10]`."""
    scores = batch.inputs @ params
    losses = -jnp.take_along_axis(jax.nn.log_softmax(scores), batch.labels[:, None], 1)[:, 0]
    value = losses.mean()
    return value, {"loss": value}


def run(
    given: Task,
    method: Method,
    points: Sequence[tuple[int, Any, Attack]],
    rounds: int,
) -> dict[str, Float[np.ndarray, "lanes ..."]]:
    """Runs of one method, as one program.

    Args:
      given: the clients.
      method: `(loss, value, channel) -> algorithm`.
      points: for every lane the place of its seed, the method's value, and the attack.
      rounds: T, a multiple of ten.

    Returns:
      Test accuracy after every tenth round, `[lanes, T / 10]`, and the means over rounds of metrics.
    """
    seeds = len(given.keys)
    sources = np.array([seed + seeds * attack.flipped for seed, _, attack in points])
    place = np.array([seed for seed, _, _ in points])
    numbers = np.array([(a.factor, a.deviations) for _, _, a in points], np.float32)
    lanes = (
        jax.tree.map(lambda leaf: leaf[sources], given.sources.own),
        given.keys[place],
        jnp.asarray(place),
        jnp.asarray(numbers),
        jnp.asarray([value for _, value, _ in points], jnp.float32),
    )

    def one(lane: Any, sources: dx.SideBySide, tests: Any, tested: Array) -> Any:
        own, key, seed, (factor, deviations), value = lane
        algorithm = method(loss, value, liars(factor, deviations))
        state = algorithm.init(key, jnp.zeros((tests[0].shape[1], 10)))
        source = sources.source(own)
        inputs, labels = tests[0][tested[seed]], tests[1][tested[seed]]

        def some(state: Any, first: Array) -> Any:
            state, metrics = dx.rollout(algorithm, state, source, key, 10, first)
            hits = (inputs @ state.server.params).argmax(-1) == labels
            return state, (hits.mean(), {k: v.mean() for k, v in metrics.items()})

        _, (accuracy, metrics) = jax.lax.scan(some, state, 10 * jnp.arange(rounds // 10))
        return {"accuracy": accuracy, **{k: v.mean() for k, v in metrics.items()}}

    program = jax.jit(lambda *a: each(one, *a))
    return jax.device_get(program(lanes, given.sources, given.tests, given.tested))


def liars(factor: Array, deviations: Array) -> channel.Channel:
    """Inner product manipulation where the factor is positive, ALIE where there are deviations."""
    hostile = jnp.asarray(HOSTILE)
    return channel.chain(
        attacks.inner_product(hostile & (factor > 0), jnp.where(factor > 0, factor, 1)),
        attacks.little_is_enough(hostile & (deviations != 0), deviations),
    )
