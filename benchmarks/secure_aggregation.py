"""Secure aggregation: messages encoded, added up modulo 2^32 and decoded, against a copy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.ceilings import memory_ms
from benchmarks.measure import Row, milliseconds
from dflax import aggregation, privacy
from dflax.aggregation import Combining
from dflax.channel import Sending

SIZE = 421_642


def rows(quick: bool) -> list[Row]:
    """Messages of a convolutional network's size; a copy reads and writes every one of them."""
    clients, repeats = (10, 3) if quick else (100, 7)
    key = jax.random.key(0)
    messages = jax.random.normal(key, (clients, SIZE))
    weights = jnp.ones(clients)
    secure = privacy.secure_aggregation(key, clients, bound=8.0)
    sparse = privacy.secure_aggregation(key, clients, bound=8.0, neighbours=min(20, clients - 2))
    plain = aggregation.mean()

    def both_ends(messages: jax.Array, weights: jax.Array) -> jax.Array:
        words, left, _, _ = secure.channel.apply(messages, weights, (), Sending(key))
        return secure.aggregator.apply(words, left, (), Combining(key))[0]

    def whole(messages: jax.Array, weights: jax.Array) -> jax.Array:
        return secure.mean.apply(messages, weights, (), Combining(key))[0]

    def with_neighbours(messages: jax.Array, weights: jax.Array) -> jax.Array:
        return sparse.mean.apply(messages, weights, (), Combining(key))[0]

    def unprotected(messages: jax.Array, weights: jax.Array) -> jax.Array:
        return plain.apply(messages, weights, (), Combining(key))[0]

    def copy(messages: jax.Array, weights: jax.Array) -> jax.Array:
        return messages * weights[:, None]

    least = memory_ms(messages.nbytes)

    def timed(function: Callable[..., Any]) -> float:
        compiled = jax.jit(function)
        return milliseconds(lambda: compiled(messages, weights), repeats=repeats)

    copied = timed(copy)
    name = f"secure aggregation of {clients} x {SIZE:,}"
    return [
        Row(f"{name}, as one rule", timed(whole), "a copy", copied, limit_ms=least),
        Row(f"{name}, 20 neighbours", timed(with_neighbours), "a copy", copied, limit_ms=least),
        Row(f"{name}, channel and aggregator", timed(both_ends), "a copy", copied, limit_ms=least),
        Row("the mean of the same messages", timed(unprotected), "a copy", copied, limit_ms=least),
    ]
