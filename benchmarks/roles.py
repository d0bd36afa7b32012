"""Rounds of two roles: FedAMD's must cost what its members cost, RERCE-Fed's a FedAvg round or less."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import dflax as dx
from benchmarks.measure import Row, milliseconds
from benchmarks.rounds import noise
from dflax.server import anchors

CLIENTS, COHORT, STEPS, BATCH, OWNED, WIDTH = 40, 10, 5, 20, 200, 400
ANCHOR = 0.5


def rows(quick: bool) -> list[Row]:
    """Times per round; the peer is what the members of the round cost in rounds of one role."""
    return _anchors_and_miners(quick) + _least_squares(quick)


def _anchors_and_miners(quick: bool) -> list[Row]:
    """A perceptron 784-400-10: an anchor reads 200 examples, a miner takes 2 x 5 gradients of 20."""
    rounds, repeats = (8, 3) if quick else (20, 5)
    source, params, loss = noise(
        CLIENTS, OWNED, STEPS, BATCH, COHORT, model=dx.models.MLP((WIDTH,), classes=10)
    )
    descent = optax.sgd(0.05)
    gradients = dx.local.client_gradients(loss, source, params)

    def amd(law: anchors.Anchors, at_once: int) -> dx.Algorithm:
        return dx.server.fedamd(loss, descent, law, at_once=at_once)

    def time(algorithm: dx.Algorithm, *given: Any, every: int = 1, first: int = 0) -> float:
        state = algorithm.init(jax.random.key(0), params, *given)
        return _per_round(algorithm, state, source, rounds, repeats, every, first)

    fedavg = time(dx.server.fedavg(loss, descent))
    whole = anchors.periodic(10**6)
    all_miners = time(amd(whole, 1), gradients, first=1)
    # Every round is number 0 of the period.
    all_anchors = time(amd(whole, 1), gradients, every=10**6)
    mixed = time(amd(anchors.constant(ANCHOR), 1), gradients)
    both = time(amd(anchors.constant(ANCHOR), COHORT), gradients)
    members = ANCHOR * all_anchors + (1 - ANCHOR) * all_miners
    name = f"FedAMD round, {COHORT} of {CLIENTS}, "
    return [
        Row(name + "all miners", all_miners, "FedAvg", fedavg),
        Row(name + "all anchors", all_anchors, "FedAvg", fedavg),
        Row(name + "p 0.5, one by one", mixed, "what its members cost", members),
        Row(name + "p 0.5, both roles for all", both, "what its members cost", members),
    ]


def _least_squares(quick: bool) -> list[Row]:
    """100 clients, 128 entries, 10 a round: exact proximal points beside FedAvg's five steps of 10."""
    rounds, repeats = (50, 3) if quick else (200, 5)
    task = dx.data.weighted_least_squares(jax.random.key(0), 100, 128, (51, 90))
    objectives = dx.local.quadratic_objectives(task.data, task.partition)
    few = dx.participation.uniform(10)
    source = dx.Federation(
        task.data, task.partition, local_steps=5, batch_size=10, participation=few
    )
    exact = dx.local.quadratic_federation(objectives, participation=few)
    noise, start = dx.channel.gaussian_noise(0.1), jnp.zeros(128)
    averaging = dx.server.fedavg(dx.data.least_squares_loss, optax.sgd(1e-7), channel=noise)
    key = jax.random.key(0)
    fedavg = _per_round(averaging, averaging.init(key, start), source, rounds, repeats)
    found = []
    for name, make in (
        ("RERCE-Fed", dx.server.rerce_fed),
        ("RERCE-Fed, continual (all 100 work)", dx.server.rerce_fed_continual),
        ("ADMM with duals", dx.server.consensus_admm),
    ):
        algorithm = make(1.0, uplink=noise, downlink=noise)
        state = algorithm.init(key, start, objectives)
        took = _per_round(algorithm, state, exact, rounds, repeats)
        found.append(Row(f"{name} round, least squares, 10 of 100", took, "FedAvg", fedavg))
    return found


def _per_round(
    algorithm: dx.Algorithm,
    state: Any,
    source: dx.Federation,
    rounds: int,
    repeats: int,
    every: int = 1,
    first: int = 0,
) -> float:
    """Milliseconds of one round among many in one call: numbers first, first + every, ..."""
    key = jax.random.key(0)

    class Strided:
        """The rounds whose numbers are multiples."""

        def draw(self, key: jax.Array, index: jax.Array) -> Any:
            return source.draw(key, first + every * index)

    rollout: Callable[..., Any] = jax.jit(
        functools.partial(dx.rollout, algorithm, source=Strided(), key=key, rounds=rounds),
        donate_argnums=0,
    )
    # Donated from call to call, as `dflax.run` does.
    states = itertools.accumulate(
        itertools.repeat(None),
        lambda held, _: rollout(held)[0],
        initial=jax.tree.map(jnp.copy, state),
    )
    next(states)
    return milliseconds(lambda: next(states), repeats=repeats, units=rounds)
