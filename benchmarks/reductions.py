"""Combining 50 messages of 421,642 numbers: means, order statistics, products, distances."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import peers
from benchmarks.ceilings import arithmetic_ms, memory_ms
from benchmarks.measure import Row, milliseconds
from benchmarks.tasks import messages
from dflax import aggregation
from dflax.aggregation import Combining

ROWS, COLUMNS, TRIM = 50, 421_642, 10
KEY = jax.random.key(0)


def combined(rule: aggregation.Aggregator) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """An aggregator without state as a function of messages and weights."""
    return lambda values, weights: rule.apply(values, weights, (), Combining(KEY))[0]


def krum(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Krum with ByzFL's count of neighbours: the message nearest to its n - f - 1 nearest others."""
    distances = aggregation.squared_distances(values, weights)
    nearest = jnp.sort(distances, 1)[:, 1 : ROWS - TRIM]
    return values[jnp.argmin(nearest.sum(1))]


# Each with the rule of ByzFL that does the same, and how often it has to read all messages.
WORK: dict[str, tuple[Callable[..., jax.Array], tuple[str, dict] | None, int, bool]] = {
    "mean": (combined(aggregation.mean()), ("Average", {}), 1, False),
    "median": (combined(aggregation.median()), ("Median", {}), 1, False),
    "trimmed mean": (
        combined(aggregation.trimmed_mean(TRIM)),
        ("TrMean", {"f": TRIM}),
        1,
        False,
    ),
    "Gram matrix": (lambda values, weights: aggregation.gram(values), None, 1, True),
    "geometric median": (
        combined(aggregation.geometric_median()),
        ("GeometricMedian", {"nu": 0.1, "T": 3}),
        2,
        True,
    ),
    "Krum": (krum, ("Krum", {"f": TRIM}), 1, True),
}


def rows(quick: bool) -> list[Row]:
    """Ours beside ByzFL; the limit is reading the messages, and where it is more the Gram matrix."""
    columns = COLUMNS // 10 if quick else COLUMNS
    values, weights = jnp.asarray(messages(ROWS, columns)), jnp.ones(ROWS)
    # A Gram matrix is symmetric: half of its entries are to be computed.
    products = float(ROWS * (ROWS + 1) * columns)
    found = []
    for name, (function, peer, reads, multiplies) in WORK.items():
        began = time.perf_counter()
        compiled = jax.jit(function).lower(values, weights).compile()
        seconds = time.perf_counter() - began
        took = milliseconds(functools.partial(compiled, values, weights), repeats=7)
        reading = memory_ms(reads * values.nbytes)
        own = Row(
            f"{name} of {ROWS} x {columns:,}",
            took,
            limit_ms=max(reading, arithmetic_ms(products)) if multiplies else reading,
            compile_ms=1e3 * seconds,
            flops=products if multiplies else None,
        )
        measured = None
        if peer is not None:
            rule, arguments = peer
            options = {"rule": rule, "arguments": arguments, "rows": ROWS, "columns": columns}
            measured = peers.run("byzfl", "reductions_byzfl", **options)
        found += own.beside(measured)
    return found
