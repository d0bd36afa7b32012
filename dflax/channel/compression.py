"""What every compressor shares: each sender on its own, and the bytes that its encoding needs."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics
from dflax.channel.channel import Channel, Messages, Sending
from dflax.clients import map_clients

Bits = Callable[[Messages], int]


def compression(
    compress: Callable[[Messages, Any, Key[Array, ""]], tuple[Messages, Any]],
    bits: Bits,
    init: Callable[[Messages], Any] = lambda message: (),
) -> Channel:
    """A channel whose senders compress their own messages.

    Its metrics count what travels from those who send, in bytes: `bytes_sent` in the compressor's
    encoding, `bytes_uncompressed` as 32-bit numbers. One message per sender counts once, however many
    neighbours hear it.

    Args:
      compress: `(message, state, key) -> (message, state)` for one sender; what comes out is what the
        receiver decodes.
      bits: of one encoded message, known from its shapes.
      init: `message -> state` of one sender.

    Raises:
      TypeError: naming the argument.
    """
    validation.function("compress", compress, "It gets (message, state, key).", takes=3)
    validation.function("bits", bits, "It gets one message.", takes=1)
    validation.function("init", init, "It gets one message.", takes=1)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        keys = jax.random.split(sending.key, weights.shape[0])
        decoded, state = map_clients(compress, messages, state, keys)
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), messages)
        senders = jnp.sum(weights > 0).astype(jnp.float32)
        metrics = {
            "bytes_sent": senders * (bits(one) / 8),
            "bytes_uncompressed": senders * (plain_bits(one) / 8),
        }
        return decoded, weights, state, metrics

    return Channel(init, apply)


def numbers(message: Messages) -> int:
    """How many numbers a message holds, d."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(message))


def plain_bits(message: Messages) -> int:
    """A message as 32-bit numbers."""
    return 32 * numbers(message)


def kept(share: float, message: Messages) -> int:
    """How many of its numbers a sparse message keeps: round(share d), at least 1."""
    return max(1, round(share * numbers(message)))


def uncompressed() -> Channel:
    """Sends messages as they are, 32 bits a number, and counts their bytes."""
    return compression(lambda message, state, key: (message, state), plain_bits)
