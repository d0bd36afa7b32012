"""One message to many receivers, each over a link of its own."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from dflax import validation
from dflax.algorithm import Metrics
from dflax.channel.channel import Channel, Sending, perfect, sent_through
from dflax.clients import replicate


def broadcast(
    channel: Channel,
    message: PyTree[Array],
    sending: Sending,
    *,
    listening: Float[Array, " m"] | None = None,
) -> tuple[PyTree[Array], Bool[Array, " m"], Metrics]:
    """What m receivers hear of one message: `copies[i] = channel(message)`, independently.

    Args:
      channel: without memory.
      message: one message.
      sending: its key, and in `senders` the m receivers' numbers.
      listening: `[m]`, positive for the receivers that are there; None: all. To the others nothing is
        sent.

    Returns:
      The copies, leaves `[m, ...]`, which of them arrived, and what the channel measured.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("sending", sending, Sending, "For example Sending(key, 0, jnp.arange(m)).")
    validation.typed_key("sending.key", sending.key)
    receivers = validation.leading_axis("sending.senders", sending.senders, least=1)
    validation.instance("channel", channel, Channel, "For example dflax.channel.perfect().")
    channel = without_memory("channel", channel)
    weights = jnp.ones(receivers, jnp.float32)
    if listening is not None:
        validation.leading_axis("listening", listening, receivers)
        weights = (jnp.asarray(listening) > 0).astype(jnp.float32)
    copies, weights, _, metrics = sent_through(
        channel, replicate(message, receivers), weights, (), sending
    )
    return copies, weights > 0, metrics


def without_memory(name: str, link: Channel | None) -> Channel:
    """The link, perfect if it is None; refuses one with memory.

    A memory belongs to a sender of changes that add up. Whoever sends models, or messages of several
    kinds, has no place for one.
    """
    link = perfect() if link is None else link
    validation.instance(name, link, Channel, "For example dflax.channel.gaussian_noise(0.1).")
    memory: Any = jax.eval_shape(link.init, jax.ShapeDtypeStruct((1,), jnp.float32))
    if jax.tree.leaves(memory):
        raise ValueError(
            f"{name} must be a channel without memory, got one that keeps {memory}. Use for "
            "example dflax.channel.gaussian_noise(0.1)."
        )
    return link
