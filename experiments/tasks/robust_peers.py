"""Digits among peers of which some lie: the setting of MoNNA's study, scaled down.

Pixels / 16, softmax regression with a bias from 0; 12 honest peers, each with class proportions drawn
from a Dirichlet law and 119 images drawn by them with replacement, and f hostile ones, 3 unless said.
Every peer hears n - f - 1 = 11 others of the n = 12 + f, the hostile ones before all others. Rates 0.75,
0.375, 0.25, ... for 50 steps each. The runs take peers with other data and models as well.
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
MEASURED = 10


def hostile(faulty: int = FAULTY, honest: int = HONEST) -> tuple[int, ...]:
    """The numbers of f hostile peers, which come last."""
    return tuple(range(honest, honest + faulty))


def heard(faulty: int = FAULTY, honest: int = HONEST) -> topology.Graph | topology.Schedule:
    """N - f - 1 others of n, f hostile ones among them; all others where there are none."""
    liars = hostile(faulty, honest)
    if not liars:
        return topology.complete(honest)
    return topology.random_neighbours(honest + faulty, honest - 1, first=liars)


HOSTILE = hostile()


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
      hostile: numbers of the hostile peers, the last ones; none where all are honest.
      data: what they learn, and what they are measured on.
      loss: of one model.
      start: from a run's key to the model that all begin with.
    """

    sources: dx.SideBySide
    keys: Array
    hostile: tuple[int, ...]
    data: dx.data.Split
    loss: Any
    start: Callable[[Array], Any]


class Found(NamedTuple):
    """What was measured in runs, leaves `[lanes, T / every]` or `[lanes, T]`, every 10 unless said.

    Attributes:
      accuracy: mean over honest peers, on test images.
      worst: of the honest peers.
      apart: their disagreement.
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
    faulty: int = FAULTY,
    alpha: float = 1.0,
    batch: int = 16,
    pieces: int = 1,
) -> Peers:
    """The peers of these seeds.

    Args:
      seeds: of class proportions, images and minibatches.
      faulty: f, hostile peers beside the 12 honest ones, whose images and minibatches are the same
        whatever f is.
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
        # What a hostile peer owns is in no message.
        there = owned[:HONEST] + [owned[HONEST + number % FAULTY] for number in range(faulty)]
        partitions.append(dx.data.from_indices(there, examples=len(labels)))
    first = dx.Federation(
        data, partitions[0], batch_size=batch, local_steps=pieces, replacement=True
    )
    return Peers(
        dx.side_by_side([first.replace(partition=own) for own in partitions]),
        jax.vmap(jax.random.key)(jnp.asarray(seeds)),
        hostile(faulty),
        data,
        dx.losses.classification(dx.models.Linear(10).apply),
        zeros,
    )


def zeros(key: Array) -> Any:
    """The softmax regression that digits begin with."""
    return {"Dense_0": {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}}


def rate(step: Array) -> Array:
    """0.75 / (1 + t / 50), looked at every 50 steps."""
    return 0.75 / (1 + step // 50)


def liars(attack: Attack, step: Any, clients: tuple[int, ...] = HOSTILE) -> channel.Channel:
    """The channel of an attack whose numbers are traced, so that one program has all attacks.

    Args:
      attack: its three numbers.
      step: s, a tree of a message's form.
      clients: who is hostile.
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

    return attacks.colluding(forge, clients)


def under_attack(
    loss: Any,
    method: Callable[..., dx.Algorithm],
    attack: Attack,
    along: Callable[[Array], Array],
    clients: tuple[int, ...] = HOSTILE,
) -> dx.Algorithm:
    """The algorithm among liars who look at the honest peers' flipped gradients before every step.

    Args:
      loss: of one model.
      method: `channel -> algorithm`.
      attack: of the hostile peers.
      along: from the round's number to how far s goes along the mean flipped gradient.
      clients: who is hostile, the last ones.
    """
    first = clients[0]

    def flipped(model: Any, minibatches: Array, data: dx.data.Dataset) -> Any:
        batch = data.fetch(minibatches[0])
        wrong = batch._replace(labels=9 - batch.labels)
        return jax.grad(lambda params: loss(params, wrong, None)[0])(model)

    def step(state: Any, round: dx.Round) -> Any:
        honest = jax.tree.map(lambda leaf: leaf[:first], state.clients.params)
        seen = round.assignments.minibatches[:first]

        def went() -> Any:
            found = dx.map_clients(flipped, honest, seen, shared=(round.data,))
            length = along(round.number)
            return jax.tree.map(lambda leaf: length * leaf.mean(0), found)

        def nowhere() -> Any:
            return jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), honest)

        one = jax.lax.cond(attack.flipped != 0, went, nowhere)
        return method(liars(attack, one, clients)).step(state, round)

    def init(key: Array, params: Any) -> Any:
        return method(liars(attack, params, clients)).init(key, params)

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
    every: int = MEASURED,
) -> Found:
    """Runs of one method, as one program.

    Args:
      given: the peers.
      method: `(loss, value, channel) -> algorithm`.
      points: for every lane the place of its seed, the method's value (beta, a radius), and the attack.
      rounds: a multiple of `every`.
      along: see `under_attack`.
      every: rounds from one measurement to the next.
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
            algorithm = under_attack(given.loss, made, Attack(*attack), along, given.hostile)
        state, source = algorithm.init(key, given.start(key)), sources.source(own)

        def some(state: Any, first: Array) -> Any:
            state, metrics = dx.rollout(algorithm, state, source, key, every, first)
            seen = measure(state)
            used = metrics.get("used_of_watched", jnp.full(every, jnp.nan))
            kept = seen["accuracy"], seen["accuracy_min"], seen["consensus_distance"], used
            return state, Found(*kept)

        return jax.lax.scan(some, state, every * jnp.arange(rounds // every))[1]

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
