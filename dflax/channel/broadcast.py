"""One message to many receivers, each over a link of its own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key, PyTree

from dflax import validation
from dflax.channel.channel import Channel, perfect
from dflax.clients import replicate


def broadcast(
    channel: Channel, message: PyTree[Array], receivers: int, key: Key[Array, ""]
) -> tuple[PyTree[Array], Bool[Array, " m"]]:
    """What m receivers hear of one message: `copies[i] = channel(message)`, independently.

    Args:
      channel: without memory; what it measures is dropped.
      message: one message.
      receivers: m >= 1.
      key: typed key.

    Returns:
      The copies, leaves `[m, ...]`, and which of them arrived.
    """
    copies, weights, _, _ = channel.apply(
        replicate(message, receivers), jnp.ones(receivers, jnp.float32), (), key
    )
    return copies, weights > 0


def both_ways(uplink: Channel | None, downlink: Channel | None) -> tuple[Channel, Channel]:
    """The two links between a server and its clients, perfect by default; refuses those with memory.

    A memory belongs to a sender of changes that add up. Whoever sends models over noisy links has no
    place for one.
    """
    links = []
    for name, link in (("uplink", uplink), ("downlink", downlink)):
        link = perfect() if link is None else link
        validation.instance(name, link, Channel, "For example dflax.channel.gaussian_noise(0.1).")
        memory = jax.tree.leaves(jax.eval_shape(link.init, jax.ShapeDtypeStruct((1,), jnp.float32)))
        if memory:
            raise ValueError(
                f"{name} must be a channel without memory, got one that keeps {memory}. Use for "
                "example dflax.channel.gaussian_noise(0.1)."
            )
        links.append(link)
    return links[0], links[1]
