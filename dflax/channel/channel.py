"""The protocol of what happens to messages on their way, and channels that compose."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from dflax import returned, validation
from dflax.algorithm import Metrics
from dflax.clients import select

Messages = PyTree[Array]


class Channel(NamedTuple):
    """What happens to the messages of a cohort between clients and receiver.

    Compression, noise, loss and attacks have this shape. A channel sees all messages at once, so a
    sender may depend on the others (a Byzantine one that knows everything).

    Attributes:
      init: `init(message) -> state` of ONE client, from one message's shape; the algorithm keeps one
        per client (error feedback remembers what a client has not sent yet).
      apply: `apply(messages, weights, state, key) -> (messages, weights, state, metrics)` with leaves
        `[m, ...]` and weights `[m]`; a lost message gets weight 0, and zeros in its place.
    """

    init: Callable[[Messages], Any]
    apply: Callable[
        [Messages, Float[Array, " m"], Any, Key[Array, ""]],
        tuple[Messages, Float[Array, " m"], Any, Metrics],
    ]


def sent_through(
    channel: Channel,
    messages: Messages,
    weights: Float[Array, " m"],
    state: Any,
    key: Key[Array, ""],
) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
    """`channel.apply`, with what it returns checked against what it was given.

    Raises:
      TypeError, ValueError: naming what `Channel.apply` returned and what it must return.
    """
    sent = channel.apply(messages, weights, state, key)
    returned.parts("Channel.apply", sent, ("messages", "weights", "state", "metrics"))
    returned.alike(
        "the messages of Channel.apply", sent[0], messages, "those it was given", dtypes=False
    )
    returned.alike(
        "the weights of Channel.apply", sent[1], weights, "those it was given", dtypes=False
    )
    returned.alike("the state of Channel.apply", sent[2], state, "the one it was given")
    returned.metrics("the metrics of Channel.apply", sent[3])
    return sent


def perfect() -> Channel:
    """Every message arrives as it was sent."""
    return Channel(
        lambda message: (), lambda messages, weights, state, key: (messages, weights, state, {})
    )


def chain(*channels: Channel) -> Channel:
    """One channel after another: the first argument acts first.

    Metrics of later channels take precedence over earlier ones of the same name.
    """
    for number, channel in enumerate(channels):
        validation.instance(f"channels[{number}]", channel, Channel, "Make one with dflax.channel.")

    def init(message: Messages) -> tuple[Any, ...]:
        return tuple(channel.init(message) for channel in channels)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, key: Key[Array, ""]
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        states: list[Any] = []
        measured: Metrics = {}
        keys = jax.random.split(key, max(len(channels), 1))
        for channel, own, own_key in zip(channels, state, keys, strict=False):
            messages, weights, own, metrics = channel.apply(messages, weights, own, own_key)
            states.append(own)
            measured |= metrics
        return messages, weights, tuple(states), measured

    return Channel(init, apply)


def gaussian_noise(deviation: float) -> Channel:
    """Adds independent noise N(0, deviation^2) to every number of every message.

    Args:
      deviation: standard deviation >= 0, in the units of the message; traceable.
    """
    validation.real("deviation", deviation, low=0.0, scalar=True)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], key: Key[Array, ""]
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        leaves, structure = jax.tree.flatten(messages)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            leaf + deviation * jax.random.normal(own, leaf.shape, leaf.dtype)
            for leaf, own in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy), weights, state, {}

    return Channel(lambda message: (), apply)


def lossy(probability: float) -> Channel:
    """Loses each message independently; the metric `messages_lost` counts those of reporting clients.

    Args:
      probability: of losing a message, in [0, 1]; traceable.
    """
    validation.real("probability", probability, low=0.0, high=1.0, scalar=True)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], key: Key[Array, ""]
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        lost = jax.random.bernoulli(key, probability, weights.shape) & (weights > 0)
        metrics = {"messages_lost": lost.sum().astype(jnp.float32)}
        return (*_without(lost, messages, weights), state, metrics)

    return Channel(lambda message: (), apply)


def finite_only() -> Channel:
    """Drops messages that hold a NaN or an infinity, so that a diverged client poisons nobody else.

    The metric `messages_dropped` counts them among the reporting clients.
    """

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], key: Key[Array, ""]
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        whole = [
            jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(1)
            for leaf in jax.tree.leaves(messages)
        ]
        broken = ~jnp.stack(whole).all(0)
        metrics = {"messages_dropped": jnp.sum(broken & (weights > 0)).astype(jnp.float32)}
        return (*_without(broken, messages, weights), state, metrics)

    return Channel(lambda message: (), apply)


def _without(
    gone: Bool[Array, " m"], messages: Messages, weights: Float[Array, " m"]
) -> tuple[Messages, Float[Array, " m"]]:
    """Weight 0 for messages that are gone, and zeros in their place: 0 times NaN would be NaN."""
    nothing = jax.tree.map(jnp.zeros_like, messages)
    return select(gone, nothing, messages), jnp.where(gone, 0.0, weights)
