"""Compressing the messages of a cohort: every compressor against a copy, the largest against a sort."""

import jax
import jax.numpy as jnp

from benchmarks.ceilings import memory_ms
from benchmarks.measure import Row, milliseconds
from dflax import channel

COMPRESSORS = {
    "top-k 1 %": channel.top_k(0.01),
    "top-k 10 %": channel.top_k(0.1),
    "random-k 1 %": channel.random_k(0.01),
    "QSGD 7 levels": channel.qsgd(7),
    "sign": channel.sign(),
    "PowerSGD rank 2": channel.powersgd(2),
}


def rows(quick: bool) -> list[Row]:
    """Messages of a convolutional network's size, 421,642 numbers in one matrix and one vector."""
    clients = 4 if quick else 16
    keys = jax.random.split(jax.random.key(0), 2)
    messages = {
        "matrix": jax.random.normal(keys[0], (clients, 3136, 134)),
        "vector": jax.random.normal(keys[1], (clients, 1418)),
    }
    weights, key = jnp.ones(clients), jax.random.key(1)
    sending = channel.Sending(key)
    repeats = 3 if quick else 5
    # To read and to write every message once.
    least = memory_ms(2 * sum(leaf.nbytes for leaf in jax.tree.leaves(messages)))
    found = []
    for name, rule in COMPRESSORS.items():
        one = jax.tree.map(lambda leaf: leaf[0], messages)
        state = jax.tree.map(lambda leaf: jnp.stack([leaf] * clients), rule.init(one))
        compress = jax.jit(rule.apply)
        took = milliseconds(
            lambda compress=compress, state=state: compress(messages, weights, state, sending)[0],
            repeats=repeats,
        )
        found.append(Row(f"compress {clients} messages, {name}", took, limit_ms=least))

    values = jax.random.normal(key, (clients, 421_642))
    for share in (0.01, 0.1):
        count = round(share * values.shape[1])

        def by_bisection(row: jax.Array, count: int = count) -> jax.Array:
            return jnp.where(channel.largest(row, count), row, 0)

        def by_heap(row: jax.Array, count: int = count) -> jax.Array:
            places = jax.lax.top_k(jnp.abs(row), count)[1]
            return jnp.zeros_like(row).at[places].set(row[places])

        ours, theirs = (
            milliseconds(lambda keep=keep: keep(values), repeats=repeats)
            for keep in (jax.jit(lambda x, f=f: jax.lax.map(f, x)) for f in (by_bisection, by_heap))
        )
        found.append(Row(f"largest {share:.0%} of {clients} messages", ours, "lax.top_k", theirs))
    return found
