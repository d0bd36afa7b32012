"""Cheap random bits for the draws of a round: a hash of a counter, a few integer operations each.

JAX's own generator is the choice wherever numbers feed a model. Who takes part and which examples
come next need no more than well-mixed bits, and in a round of a small model the default generator
would cost more than the arithmetic of the round.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

# What is folded into a key that already has another use, so that no two draws share one. A run folds
# the numbers of its rounds, from 0, into its key; what is drawn before the first round takes the
# largest numbers.
OF_STARTS = 0xFFFFFFFF
OF_ORDERS = 0xFFFFFFFE
# Into a round's key.
OF_AVERAGING = 3
OF_SENDING = 4
OF_CALIBRATION = 0x5EED
# Into an aggregation's key.
OF_TRUST = 0x7057


def mix(bits: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijective mix of 32 bits: every input bit moves every output bit (Wellons' lowbias32)."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def uniform(words: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """Numbers in [0, 1) of 24 bits each, from random words."""
    return (words >> 8).astype(jnp.float32) * 2.0**-24


def seed_of(key: Key[Array, ""]) -> UInt32[Array, "2"]:
    """64 bits of a typed key, as the seed of a stream of counters."""
    words = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)
    return jnp.stack([words[0], words[-1]])


def stream(seed: UInt32[Array, "2"], label: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A stream of its own for every label (a client's number, say): where its counters start."""
    return mix(mix(label.astype(jnp.uint32) ^ seed[0]) ^ seed[1])


def positions(start: Int[Array, "..."], count: int) -> UInt32[Array, "m count"]:
    """`count` counters of every stream from its own start, `[m]`, or from one for all, as `[1, count]`.

    Counters wrap around after 2^32.
    """
    first = jnp.reshape(start, (-1, 1)).astype(jnp.uint32)
    return first + jnp.arange(count, dtype=jnp.uint32)


def bits(key: Key[Array, ""], count: int) -> UInt32[Array, " count"]:
    """`count` 32-bit words that depend on the key."""
    start = stream(seed_of(key), jnp.zeros((), jnp.uint32))
    return mix(start + mix(jnp.arange(count, dtype=jnp.uint32)))
