"""Verified inference: queries a second of the simulator, and Freivalds' check against the product."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from benchmarks import alone
from benchmarks.ceilings import memory_ms
from benchmarks.measure import Row, alternately
from dflax import verified_inference as vi


def rows(quick: bool) -> list[Row]:
    """Queries, and checks of a product of integer matrices."""
    return [*queries(1000 if quick else 10_000), *products(512 if quick else 2048)]


def queries(count: int) -> list[Row]:
    """Milliseconds a query, digits' network, committees of 7 of 20 and of 1,000 nodes.

    The peer is `alone.executed`: the two models that nodes run, and a committee of 7 drawn.
    """
    model = dx.models.MLP((64, 32, 16), 10)
    inputs = np.random.default_rng(0).normal(size=(360, 64)).astype(np.float32)
    params = model.init(jax.random.key(0), inputs[:1])["params"]

    def apply(params: Any, inputs: Any) -> Any:
        return model.apply({"params": params}, inputs)

    least = alone.repeated(alone.executed(apply, 7), count)
    measured = []
    for nodes in (20, 1000):
        faulty = vi.nodes(np.arange(nodes) % 5 // 4, (vi.fewer_bits(4),))
        algorithm = vi.verified_inference(apply, faulty, committee=7, noise=1e-6)
        source, key = vi.Queries(inputs), jax.random.key(1)

        def work(
            state: Any, source: vi.Queries, algorithm: dx.Algorithm = algorithm, key: Any = key
        ) -> Any:
            return dx.rollout(algorithm, state, source, key, count)

        state = algorithm.init(key, params)
        compiled = jax.jit(work).lower(state, source).compile()
        first = jnp.int32(0), jnp.float32(0)
        given = state.server.models, jnp.asarray(inputs), state.clients.reputation
        took, alone_ms = (
            total / count
            for total in alternately(
                lambda: compiled(state, source),  # noqa: B023
                lambda: least(first, *given),  # noqa: B023
                repeats=3,
            )
        )
        name = f"a query of {nodes:,} nodes, committees of 7 to 31, {1000 / took:,.0f} a second"
        measured.append(Row(name, took, "its executions and draws alone", alone_ms))
    return measured


def products(size: int) -> list[Row]:
    """Freivalds' check of a product of 8-bit integers, and products that it saves.

    The limit is to read the three matrices once.
    """
    generator = np.random.default_rng(0)
    a, b = (jnp.asarray(generator.integers(-127, 128, (size, size)), jnp.int32) for _ in range(2))
    product = jax.jit(vi.modular_product)
    real = jax.jit(lambda a, b: a.astype(jnp.float32) @ b.astype(jnp.float32))
    c, key = product(a, b), jax.random.key(0)
    check = jax.jit(vi.freivalds)
    if not bool(check(key, a, b, c)):
        raise AssertionError("a right product must be accepted.")
    ours, exact, rounded = alternately(
        lambda: check(key, a, b, c), lambda: product(a, b), lambda: real(a, b), repeats=3
    )
    name = f"Freivalds' check of a product of {size} x {size} integers"
    least = memory_ms(3 * a.nbytes)
    return [
        Row(name, ours, "the product modulo 2^31 - 1", exact, least),
        Row(name, ours, "the product in float32, not exact", rounded, least),
    ]
