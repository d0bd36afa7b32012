"""Events at d = 1,000 and n = 100: DADAO's gradients and communications, MoDeST's messages."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks.ceilings import memory_ms
from benchmarks.measure import Row, milliseconds
from dflax import participation
from dflax.decentralized.modest.traffic import ENTRY
from dflax.gossip import NodeEvents, independent_groups, poisson_stream

NODES, DIMENSION = 100, 1000


def quadratic(x: Any, batch: dx.data.Batch, key: Any) -> tuple[jax.Array, dict[str, Any]]:
    """(1/2) |x - c_i|^2: a gradient that costs nothing beside the event."""
    value = 0.5 * jnp.mean(jnp.sum(jnp.square(x - batch.inputs), axis=-1))
    return value, {"loss": value}


def rows(quick: bool) -> list[Row]:
    """A thousand events of each system."""
    centers = np.random.default_rng(0).normal(size=(NODES, DIMENSION)).astype(np.float32)
    data = dx.data.Dataset(jnp.asarray(centers), jnp.zeros(NODES, jnp.int32))
    partition = dx.data.from_indices([np.array([node]) for node in range(NODES)])
    return [
        *poisson_events(data, partition, 4000 if quick else 20000),
        *messages(data, partition, 200 if quick else 1000),
    ]


def poisson_events(data: dx.data.Dataset, partition: dx.data.Partition, count: int) -> list[Row]:
    """DADAO's events, one by one and in groups without conflicts, against a copy of their rows."""
    rates = dx.topology.uniform_rates(dx.topology.random_regular(NODES, 8))
    method = dx.decentralized.dadao(quadratic, rates, strong_convexity=1.0, smoothness=1.0)
    stream = poisson_stream(rates, count, seed=0)
    groups = independent_groups(stream, NODES)
    key = jax.random.key(0)
    gradients = int(stream.gradient.sum())
    # Six vectors of every node that takes part are read and written once.
    moved = 2.0 * 4 * 6 * DIMENSION * (2 * (count - gradients) + gradients)
    measured = []
    for name, events, steps in (
        ("one by one", stream, count),
        ("in groups", groups, len(groups.time)),
    ):

        def work(state: dx.FederatedState, source: NodeEvents, steps: int = steps) -> jax.Array:
            return dx.rollout(method, state, source, key, steps)[0].clients.vectors

        state = method.init(key, jnp.zeros(DIMENSION))
        source, compiled = NodeEvents(data, partition, events), jax.jit(work)
        took = milliseconds(lambda: compiled(state, source), units=count // 1000)  # noqa: B023
        measured.append(
            Row(
                f"1,000 DADAO events {name}, n=100, d=1,000",
                took,
                limit_ms=memory_ms(moved / (count // 1000)),
                bytes=moved / (count // 1000),
            )
        )
    return measured


def messages(data: dx.data.Dataset, partition: dx.data.Partition, rounds: int) -> list[Row]:
    """MoDeST's rounds by the messages they handle, against a copy of the models and views among them.

    A message is a ping, answered or not, an answer, or a model with its sender's view. What a round does
    besides (orders of all nodes, one local step of every participant, the mean) is in the time.
    """
    key = jax.random.key(0)
    # One row for each round, so that the silent change.
    present = np.random.default_rng(1).random((rounds, NODES)) < 0.2
    measured = []
    for name, rule, aggregators in (
        ("everyone there", participation.everyone(), 1),
        ("80 of 100 silent", participation.present(jnp.asarray(present)), 2),
    ):
        source = dx.Federation(
            data,
            partition,
            local_steps=1,
            batch_size=1,
            participation=rule,
            weights=jnp.ones(NODES),
        )
        method = dx.decentralized.modest(
            quadratic, optax.sgd(0.1), clients=NODES, sample=10, aggregators=aggregators
        )

        def work(
            state: dx.FederatedState, source: dx.Federation, method: dx.Algorithm = method
        ) -> tuple[dx.FederatedState, dict[str, jax.Array]]:
            return dx.rollout(method, state, source, key, rounds)

        state, compiled = method.init(key, jnp.zeros(DIMENSION)), jax.jit(work)
        sent = compiled(state, source)[1]
        models = int(sent["models_sent"].sum())
        count = int(sent["pings"].sum()) + int(sent["answers"].sum()) + models
        took = milliseconds(lambda: compiled(state, source), units=count) * 1000  # noqa: B023
        # A model is read and written once; merging a view reads two rows and writes one.
        moved = 1000 * models / count * (2.0 * 4 * DIMENSION + 3.0 * ENTRY * NODES)
        measured.append(
            Row(
                f"1,000 MoDeST messages, {name}, n=100, d=1,000",
                took,
                limit_ms=memory_ms(moved),
                bytes=moved,
            )
        )
    return measured
