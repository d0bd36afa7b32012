"""Asynchronous events at d = 1,000 and n = 100: DADAO's gradients and communications, in one scan."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from benchmarks.ceilings import memory_ms
from benchmarks.measure import Row, milliseconds
from dflax.gossip import NodeEvents, independent_groups, poisson_stream


def quadratic(x: Any, batch: dx.data.Batch, key: Any) -> tuple[jax.Array, dict[str, Any]]:
    """(1/2) |x - c_i|^2: a gradient that costs nothing beside the event."""
    value = 0.5 * jnp.mean(jnp.sum(jnp.square(x - batch.inputs), axis=-1))
    return value, {"loss": value}


def rows(quick: bool) -> list[Row]:
    """A thousand events, one by one and in groups without conflicts, against a copy of their rows."""
    nodes, dimension, count = 100, 1000, 4000 if quick else 20000
    rates = dx.topology.uniform_rates(dx.topology.random_regular(nodes, 8))
    method = dx.decentralized.dadao(quadratic, rates, strong_convexity=1.0, smoothness=1.0)
    centers = np.random.default_rng(0).normal(size=(nodes, dimension)).astype(np.float32)
    data = dx.data.Dataset(jnp.asarray(centers), jnp.zeros(nodes, jnp.int32))
    partition = dx.data.from_indices([np.array([node]) for node in range(nodes)])
    stream = poisson_stream(rates, count, seed=0)
    groups = independent_groups(stream, nodes)
    key = jax.random.key(0)
    gradients = int(stream.gradient.sum())
    # Six vectors of every node that takes part are read and written once.
    moved = 2.0 * 4 * 6 * dimension * (2 * (count - gradients) + gradients)
    measured = []
    for name, events, steps in (
        ("one by one", stream, count),
        ("in groups", groups, len(groups.time)),
    ):

        def work(state: dx.FederatedState, source: NodeEvents, steps: int = steps) -> jax.Array:
            return dx.rollout(method, state, source, key, steps)[0].clients.vectors

        state = method.init(key, jnp.zeros(dimension))
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
