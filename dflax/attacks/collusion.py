"""Clients that agree on one message, made of the messages that they know."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import validation
from dflax.aggregation import counted_mean, finite_rows
from dflax.algorithm import Metrics
from dflax.channel import Channel, Sending
from dflax.channel.channel import membership
from dflax.clients import against, select

Clients = int | Int[Array, " k"] | Bool[Array, " n"] | Sequence[int]
Knows = Literal["all", "own"]
KNOWS = ("all", "own")
Messages = PyTree[Array]
Forge = Callable[[Messages, Bool[Array, " m"], Key[Array, ""]], Messages]


def colluding(forge: Forge, clients: Clients, *, knows: Knows = "all") -> Channel:
    """Hostile clients all send one message, made of those that they know.

        x_i <- forge({x_j, j known})                                      for every hostile i that sends

    Args:
      forge: `(messages, known, key) -> message` of leaves `[m, ...]`, a mask `[m]` of those that it may
        look at, all of them finite, and the sending's key, to leaves `[...]`.
      clients: who is hostile, by number or mask over all clients, see `channel.only`; traceable.
      knows: "all": they know what every honest client sends in this round; "own": only what they
        themselves would have sent.

    Returns:
      A `Channel` for any algorithm, without state or metrics. Where nobody is known they send 0.

    Raises:
      TypeError, ValueError: naming the argument; and, while a step is traced, senders not known.
    """
    validation.function("forge", forge, "Say (messages, known, key) -> message.", takes=3)
    hostile_among = membership(clients)
    validation.choice("knows", knows, KNOWS)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        hostile = hostile_among(sending)
        there = (weights > 0) & finite_rows(messages)
        known = there & (~hostile if knows == "all" else hostile)
        clean = select(known, messages, jax.tree.map(jnp.zeros_like, messages))
        forged = forge(clean, known, sending.key)
        return replaced(messages, hostile & (weights > 0), forged), weights, state, {}

    return Channel(lambda message: (), apply)


def replaced(messages: Messages, rows: Bool[Array, " m"], message: Messages) -> Messages:
    """The messages with one message in the place of some."""
    return jax.tree.map(
        lambda leaf, one: jnp.where(against(rows, leaf), one.astype(leaf.dtype), leaf),
        messages,
        message,
    )


def known_mean(messages: Messages, known: Bool[Array, " m"]) -> Messages:
    """The mean of those that are known; 0 where nobody is."""
    return counted_mean(messages, known.astype(jnp.float32))


def known_deviation(messages: Messages, known: Bool[Array, " m"], mean: Messages) -> Messages:
    """Coordinate by coordinate the standard deviation, over k - 1; 0 of a single one."""
    count = jnp.sum(known)

    def of(leaf: Array, centre: Array) -> Array:
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        away = jnp.where(against(known, leaf), leaf.astype(wide) - centre.astype(wide), 0)
        return jnp.sqrt(jnp.sum(jnp.square(away), axis=0) / jnp.maximum(count - 1, 1))

    return jax.tree.map(of, messages, mean)


def along(start: Messages, direction: Messages, length: Any) -> Messages:
    """`start + length direction`."""
    return jax.tree.map(lambda x, d: x + jnp.asarray(length, d.dtype) * d, start, direction)
