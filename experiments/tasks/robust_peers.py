"""Digits among peers of which some lie: the setting of MoNNA's study, scaled down.

Pixels / 16, softmax regression with a bias from 0; 12 honest peers, each with class proportions drawn
from a Dirichlet law and 119 images drawn by them with replacement, and 3 hostile ones. Every peer hears
11 others of 14, the hostile ones before all others. Rates 0.75, 0.375, 0.25, ... for 50 steps each.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import dflax as dx
from dflax import attacks, channel, evaluation, topology
from dflax.data.laws import dirichlet_rows
from experiments.tasks.skewed_digits import drawn_by
from experiments.tools.lanes import each

HONEST, FAULTY, OWNED, DECAY = 12, 3, 119, 1e-4
PEERS = HONEST + FAULTY
HOSTILE = tuple(range(HONEST, PEERS))
HEARD = topology.random_neighbours(PEERS, PEERS - FAULTY - 1, first=HOSTILE)
MEASURED = 10


class Attack(NamedTuple):
    """What hostile peers send: `mean * (honest mean) + deviations * (honest standard deviation)`.

    Attributes:
      mean: 1 less the factor of an inner product; 1 of ALIE.
      deviations: z of ALIE.
      honestly: whether they send their own half step instead, learnt on flipped labels.
    """

    mean: float
    deviations: float = 0.0
    honestly: bool = False


ATTACKS = {
    "sign flip": Attack(-1.0),
    "FoE": Attack(0.5),
    "ALIE": Attack(1.0, 1.5),
    "label flip": Attack(0.0, 0.0, True),
}


class Peers(NamedTuple):
    """Peers of several seeds.

    Attributes:
      sources: of every seed twice: with clean labels, then those of which the hostile learn wrong ones.
      keys: `[S]` of the runs.
      hostile: numbers of the hostile peers; none where all are honest.
      data: with a flipped copy of the training images after the images.
      loss: of one model.
    """

    sources: dx.SideBySide
    keys: Array
    hostile: tuple[int, ...]
    data: dx.data.Split
    loss: Any


class Found(NamedTuple):
    """What was measured in runs, leaves `[lanes, T / 10]` or `[lanes, T]`.

    Attributes:
      accuracy: mean over honest peers, on test images.
      worst: of the honest peers.
      apart: their disagreement, after every 10th round.
      used: share of the hostile messages heard that have a part in what honest peers make, every round;
        NaN of rules that do not tell.
    """

    accuracy: np.ndarray
    worst: np.ndarray
    apart: np.ndarray
    used: np.ndarray


def peers(
    seeds: Sequence[int],
    *,
    attacked: bool = True,
    alpha: float = 1.0,
    batch: int = 16,
    pieces: int = 1,
) -> Peers:
    """The peers of these seeds, the honest ones alone unless attacked.

    Args:
      seeds: of class proportions, images and minibatches.
      attacked: whether the hostile peers are there.
      alpha: of the Dirichlet law.
      batch: images of a minibatch.
      pieces: minibatches of a round: several for LEARN.
    """
    clean = dx.data.digits()
    data = with_flipped_copy(clean)
    labels, count = np.asarray(clean.train.labels), len(clean.train)
    partitions = []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        laws = dirichlet_rows(generator, alpha, (PEERS, 10))
        owned = drawn_by(laws, labels, OWNED, generator)
        wrong = [own + count if peer in HOSTILE else own for peer, own in enumerate(owned)]
        there = PEERS if attacked else HONEST
        partitions += [
            dx.data.from_indices(rows[:there], examples=2 * count) for rows in (owned, wrong)
        ]
    first = dx.Federation(
        data, partitions[0], batch_size=batch, local_steps=pieces, replacement=True
    )
    return Peers(
        dx.side_by_side([first.replace(partition=own) for own in partitions]),
        jax.vmap(jax.random.key)(jnp.asarray(seeds)),
        HOSTILE if attacked else (),
        data,
        dx.losses.classification(dx.models.Linear(10).apply),
    )


def with_flipped_copy(data: dx.data.Split) -> dx.data.Split:
    """The training images twice, the second time with labels 9 - y: honest peers own the first ones."""
    train = data.train
    inputs = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), train.inputs)
    labels = jnp.concatenate([train.labels, train.labels])
    both = dataclasses.replace(train, inputs=inputs, labels=labels)
    flipped = attacks.flipped_labels(both, np.arange(len(train), 2 * len(train)))
    return data._replace(train=flipped)


def rate(step: Array) -> Array:
    """0.75 / (1 + t / 50), looked at every 50 steps."""
    return 0.75 / (1 + step // 50)


def liars(mean: Array, deviations: Array, honestly: Array) -> dx.channel.Channel:
    """The channel of an `Attack` whose numbers are traced, so that one program has all attacks."""

    def forge(messages: Any, known: Array, key: Array) -> Any:
        count = jnp.sum(known)

        def of(leaf: Array) -> Array:
            mask = known.reshape(-1, *(1,) * (leaf.ndim - 1))
            centre = jnp.sum(jnp.where(mask, leaf, 0), 0) / count
            away = jnp.where(mask, leaf - centre, 0)
            return mean * centre + deviations * jnp.sqrt(jnp.sum(away**2, 0) / (count - 1))

        return jax.tree.map(of, messages)

    lying = attacks.colluding(forge, HOSTILE)

    def apply(messages: Any, weights: Array, state: Any, sending: Any) -> Any:
        sent, weights, state, metrics = lying.apply(messages, weights, state, sending)
        chosen = jax.tree.map(lambda own, lie: jnp.where(honestly, own, lie), messages, sent)
        return chosen, weights, state, metrics

    return channel.Channel(lying.init, apply)


def run(
    given: Peers,
    method: Callable[..., dx.Algorithm],
    points: Sequence[tuple[int, float, Attack]],
    rounds: int,
) -> Found:
    """Runs of one method, as one program.

    Args:
      given: the peers.
      method: `(loss, value, channel) -> algorithm`.
      points: for every lane the place of its seed, the method's value (beta, a radius), and the attack.
      rounds: a multiple of ten.
    """
    measure = evaluation.on(given.loss, given.data.test)
    honest = evaluation.models_of(given.hostile, but=True) if given.hostile else None
    everyone = evaluation.together(
        evaluation.client_models(measure, models=honest), evaluation.disagreement(models=honest)
    )
    places = np.array([2 * seed + attack.honestly for seed, _, attack in points])
    numbers = [(value, *map(float, attack)) for _, value, attack in points]
    lanes = (
        jax.tree.map(lambda leaf: leaf[places], given.sources.own),
        given.keys[places // 2],
        jnp.asarray(numbers, jnp.float32),
    )

    def one(lane: Any, sources: dx.SideBySide, measure: Any) -> Found:
        own, key, (value, mean, deviations, honestly) = lane
        lying = liars(mean, deviations, honestly > 0) if given.hostile else None
        algorithm = method(given.loss, value, lying)
        start = {"Dense_0": {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}}
        state, source = algorithm.init(key, start), sources.source(own)

        def some(state: Any, first: Array) -> Any:
            state, metrics = dx.rollout(algorithm, state, source, key, MEASURED, first)
            seen = measure(state)
            used = metrics.get("used_of_watched", jnp.full(MEASURED, jnp.nan))
            kept = seen["accuracy"], seen["accuracy_min"], seen["consensus_distance"], used
            return state, Found(*kept)

        return jax.lax.scan(some, state, MEASURED * jnp.arange(rounds // MEASURED))[1]

    found = jax.device_get(jax.jit(lambda *a: each(one, *a))(lanes, given.sources, everyone))
    return found._replace(used=found.used.reshape(len(points), -1))


def final(found: Found, last: int = 50) -> dict[str, Float[np.ndarray, " lanes"]]:
    """What tables show of runs: at the end, and of disagreement and messages over the last rounds."""
    return {
        "accuracy": found.accuracy[:, -1],
        "worst": found.worst[:, -1],
        "disagreement": found.apart[:, -(last // MEASURED) :].mean(1),
        "hostile used": found.used[:, -last:].mean(1),
    }
