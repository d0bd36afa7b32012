"""Matched units: assignment problems beside optax and scipy, a round of DIMAT beside one of WA."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks import rounds
from benchmarks.ceilings import memory_ms
from benchmarks.measure import Row, alternately
from benchmarks.merging_limits import looked_at
from dflax import decentralized, matching, topology

PROBLEMS, UNITS = 20, 128
AGENTS, EXAMPLES = 5, 300


def rows(quick: bool) -> list[Row]:
    """The assignment problems of one merge, then whole rounds."""
    return [*assignments(quick), *merges(quick)]


def assignments(quick: bool) -> list[Row]:
    """20 problems of 128 x 128, correlations of units that share some of what they say.

    The limit is to read them once.
    """
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(PROBLEMS, 1000, 40))
    mixing = generator.normal(size=(PROBLEMS, 40, 2 * UNITS))
    noise = generator.normal(size=(PROBLEMS, 1000, 2 * UNITS))
    said = np.maximum(shared @ mixing + noise, 0.0)
    profit = np.stack([np.corrcoef(one.T)[:UNITS, UNITS:] for one in said])
    problems = jnp.asarray(profit, jnp.float32)
    ways = (matching.assign, matching.assign_on_host)
    ours, on_host = alternately(
        *(functools.partial(jax.jit(way), problems) for way in ways), repeats=3 if quick else 10
    )
    by_optax = jax.jit(matching.assign_by_optax)
    jax.block_until_ready(by_optax(problems))
    began = time.perf_counter()
    jax.block_until_ready(by_optax(problems))
    name = f"assignment, {PROBLEMS} problems of {UNITS} x {UNITS}, on the device"
    peers = {"optax": 1e3 * (time.perf_counter() - began), "scipy by callback": on_host}
    least = memory_ms(problems.nbytes)
    return [Row(name, ours, peer, took, limit_ms=least) for peer, took in peers.items()]


def merges(quick: bool) -> list[Row]:
    """A merge and 40 steps of a 64-128-128-10 perceptron on a ring; the peer merges without matching.

    The limits have all but the assignments, which look at every correlation once, see
    `merging_limits.looked_at`; by weights one sweep of them.
    """
    generator = np.random.default_rng(0)
    images = generator.random((AGENTS * EXAMPLES, 8, 8, 1)).astype(np.float32)
    labels = jnp.asarray(generator.integers(0, 10, len(images)), jnp.int32)
    data = dx.data.Dataset(jnp.asarray(images), labels, classes=10)
    source = dx.Federation(
        data,
        dx.data.from_indices(np.array_split(np.arange(len(images)), AGENTS)),
        local_steps=40,
        batch_size=32,
    )
    model, key = dx.models.MLP((UNITS, UNITS), classes=10), jax.random.key(0)
    inputs = data.fetch(jnp.arange(2)).inputs

    def fresh(key: jax.Array) -> dict:
        return model.init(key, inputs)["params"]

    known = matching.symmetries(model, fresh(key), inputs)
    loss = dx.losses.classification(model.apply)
    ways = {
        "WA": None,
        "DIMAT by activations": matching.by_activations(model, known),
        "DIMAT by weights": matching.by_weights(known),
        "limit of DIMAT by activations": matching.by_activations(model, known, assign=looked_at),
        "limit of DIMAT by weights": matching.by_weights(known, assign=looked_at, sweeps=1),
    }

    def algorithm(way: matching.Matching | None) -> dx.Algorithm:
        return decentralized.dimat(
            loss, optax.sgd(0.01, 0.9), topology.ring(AGENTS), way, batch_size=EXAMPLES
        )

    return rounds.beside_first(
        {name: functools.partial(algorithm, way) for name, way in ways.items()},
        lambda algorithm: algorithm.init(key, fresh),
        source,
        2 if quick else 5,
        f"round, perceptron, {AGENTS} agents on a ring",
    )
