"""Rounds of 100 clients out of ever larger populations, each client with a memory of its own."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks.logistic import logits
from benchmarks.measure import Row
from benchmarks.tasks import LOGISTIC

COHORT, OWNED, EXAMPLES = 100, 4, 10_000


def remembering() -> dx.channel.Channel:
    """Sends the message plus a memory of earlier ones: state of the model's size per client."""

    def apply(
        messages: dict, weights: jax.Array, state: dict, sending: dx.channel.Sending
    ) -> tuple:
        sent = jax.tree.map(jnp.add, messages, state)
        return sent, weights, jax.tree.map(lambda leaf: 0.1 * leaf, sent), {}

    return dx.channel.Channel(lambda message: jax.tree.map(jnp.zeros_like, message), apply)


def round_of(population: int, rounds: int) -> tuple[float, int]:
    """Milliseconds per round, and the bytes of the state."""
    generator = np.random.default_rng(0)
    data = dx.data.Dataset(
        jnp.asarray(generator.normal(size=(EXAMPLES, LOGISTIC.features)), jnp.float32),
        jnp.asarray(generator.integers(0, LOGISTIC.classes, EXAMPLES), jnp.int32),
        classes=LOGISTIC.classes,
    )
    # As if from `from_indices`, without a Python list per client.
    partition = dx.data.Partition(
        jnp.asarray(np.arange(OWNED * population) % EXAMPLES, jnp.int32),
        jnp.asarray(OWNED * np.arange(population), jnp.int32),
        jnp.full(population, OWNED, jnp.int32),
        jnp.asarray([5, 7, 11], jnp.uint32),
    )
    federation = dx.Federation(
        data,
        partition,
        batch_size=OWNED,
        local_steps=2,
        participation=dx.participation.uniform(COHORT),
    )
    algorithm = dx.server.fedavg(
        dx.losses.classification(logits),
        optax.sgd(0.1),
        channel=remembering(),
        clients=population,
    )
    key = jax.random.key(0)
    state = jax.jit(algorithm.init)(key, jax.tree.map(jnp.asarray, LOGISTIC.layers()))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    times = []
    for _ in range(3):
        state, history = dx.run(
            algorithm, state, federation, rounds=rounds, key=key, donate=True, chunk=rounds
        )
        times.append(1e3 * history.seconds / rounds)
    return min(times), size


def rows(quick: bool) -> list[Row]:
    """One row per population; the largest also tells the process's peak memory against its state."""
    found = []
    for population in (1_000, 10_000, 100_000) if quick else (1_000, 10_000, 100_000, 1_000_000):
        took, size = round_of(population, 50 if quick else 200)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = f"state {size / 1e6:.0f} MB, process peak so far {peak / 1e6:.0f} MB"
        found.append(Row(f"100 of {population:,} clients ({memory})", took))
    return found
