"""Digits among peers of which some lie: the setting of MoNNA's study, scaled down.

Pixels / 16, softmax regression with a bias from 0; 12 honest peers, each with class proportions drawn
from a Dirichlet law and 119 images drawn by them with replacement, and 3 hostile ones. Every peer hears
11 others of 14, the hostile ones before all others. Rates 0.75, 0.375, 0.25, ... for 50 steps each.
"""

import functools
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
    """What hostile peers send: `mean * (honest mean) + deviations * (their deviation) + flipped * s`.

    Attributes:
      mean: 1 less the factor of an inner product; 1 of ALIE.
      deviations: z of ALIE.
      flipped: how often s, a step along the honest peers' mean gradient on labels 9 - y, taken before
        they step.
    """

    mean: float
    deviations: float = 0.0
    flipped: float = 0.0


ATTACKS = {
    "sign flip": Attack(-1.0),
    "FoE": Attack(0.5),
    "ALIE": Attack(1.0, 1.5),
    "label flip": Attack(1.0, 0.0, 1.0),
}


class Peers(NamedTuple):
    """Peers of several seeds.

    Attributes:
      sources: of every seed.
      keys: `[S]` of the runs.
      hostile: numbers of the hostile peers; none where all are honest.
      data: the digits.
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
    data = dx.data.digits()
    labels, partitions = np.asarray(data.train.labels), []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        laws = dirichlet_rows(generator, alpha, (PEERS, 10))
        owned = drawn_by(laws, labels, OWNED, generator)
        there = PEERS if attacked else HONEST
        partitions.append(dx.data.from_indices(owned[:there], examples=len(labels)))
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


def rate(step: Array) -> Array:
    """0.75 / (1 + t / 50), looked at every 50 steps."""
    return 0.75 / (1 + step // 50)


def liars(attack: Attack, step: Any) -> channel.Channel:
    """The channel of an attack whose numbers are traced, so that one program has all attacks.

    Args:
      attack: its three numbers.
      step: s, a tree of a message's form.
    """

    def forge(messages: Any, known: Array, key: Array) -> Any:
        count = jnp.sum(known)

        def of(leaf: Array, flipped: Array) -> Array:
            mask = known.reshape(-1, *(1,) * (leaf.ndim - 1))
            centre = jnp.sum(jnp.where(mask, leaf, 0), 0) / count
            away = jnp.where(mask, leaf - centre, 0)
            deviation = jnp.sqrt(jnp.sum(away**2, 0) / (count - 1))
            return attack.mean * centre + attack.deviations * deviation + attack.flipped * flipped

        return jax.tree.map(of, messages, step)

    return attacks.colluding(forge, HOSTILE)


def under_attack(
    loss: Any, method: Callable[..., dx.Algorithm], attack: Attack, along: Callable[[Array], Array]
) -> dx.Algorithm:
    """The algorithm among liars who look at the honest peers' flipped gradients before every step.

    Args:
      loss: of one model.
      method: `channel -> algorithm`.
      attack: of the hostile peers.
      along: from the round's number to how far s goes along the mean flipped gradient.
    """

    def step(state: Any, round: dx.Round) -> Any:
        def flipped(model: Any, minibatches: Array) -> Any:
            batch = round.data.fetch(minibatches[0])
            wrong = batch._replace(labels=9 - batch.labels)
            return jax.grad(lambda params: loss(params, wrong, None)[0])(model)

        honest = jax.tree.map(lambda leaf: leaf[:HONEST], state.clients.params)
        seen = jax.vmap(flipped)(honest, round.assignments.minibatches[:HONEST])
        length = along(round.number)
        went = jax.tree.map(lambda leaf: length * leaf.mean(0), seen)
        return method(liars(attack, went)).step(state, round)

    def init(key: Array, params: Any) -> Any:
        return method(liars(attack, params)).init(key, params)

    return dx.Algorithm(init, step)


def back(index: Array) -> Array:
    """Down the flipped gradient, as far as the honest step."""
    return -rate(index)


def run(
    given: Peers,
    method: Callable[..., dx.Algorithm],
    points: Sequence[tuple[int, float, Attack]],
    rounds: int,
    along: Callable[[Array], Array] = back,
) -> Found:
    """Runs of one method, as one program.

    Args:
      given: the peers.
      method: `(loss, value, channel) -> algorithm`.
      points: for every lane the place of its seed, the method's value (beta, a radius), and the attack.
      rounds: a multiple of ten.
      along: see `under_attack`.
    """
    measure = evaluation.on(given.loss, given.data.test)
    honest = evaluation.models_of(given.hostile, but=True) if given.hostile else None
    everyone = evaluation.together(
        evaluation.client_models(measure, models=honest), evaluation.disagreement(models=honest)
    )
    places = np.array([seed for seed, _, _ in points])
    numbers = [(value, *attack) for _, value, attack in points]
    lanes = (
        jax.tree.map(lambda leaf: leaf[places], given.sources.own),
        given.keys[places],
        jnp.asarray(numbers, jnp.float32),
    )

    def one(lane: Any, sources: dx.SideBySide, measure: Any) -> Found:
        own, key, (value, *attack) = lane
        algorithm = method(given.loss, value, None)
        if given.hostile:
            made = functools.partial(method, given.loss, value)
            algorithm = under_attack(given.loss, made, Attack(*attack), along)
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
