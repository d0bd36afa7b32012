"""Clients that lie for themselves, and need to know of nobody else."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.algorithm import Metrics
from dflax.attacks.collusion import Clients, Messages
from dflax.channel import Channel, Sending, only


def sign_flipping(clients: Clients, factor: float = 1.0) -> Channel:
    """Hostile clients send the opposite of their message: `x_i <- -factor x_i`.

    With factor 10 it is known as the reverse attack. Where all hostile clients send the opposite of the
    honest mean, see `inner_product`.

    Args:
      clients: who is hostile, by number or mask over all clients, see `channel.only`: a liar is known by
        its number, whoever is sampled; traceable.
      factor: > 0, traceable.

    Returns:
      A `Channel` for any algorithm. Chain it before what happens on the way:
      `channel.chain(sign_flipping(3), channel.finite_only())`.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> channel = dx.attacks.sign_flipping(clients=0)
      >>> messages = jnp.array([[1.0], [2.0]])
      >>> sending = dx.channel.Sending(jax.random.key(0), senders=jnp.arange(2))
      >>> state = channel.init(messages[0])
      >>> arrived, weights, state, metrics = channel.apply(messages, jnp.ones(2), state, sending)
      >>> arrived.tolist()
      [[-1.0], [2.0]]
    """
    validation.real("factor", factor, low=0.0, low_open=True, scalar=True)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        turned = jax.tree.map(lambda x: -jnp.asarray(factor, x.dtype) * x, messages)
        return turned, weights, state, {}

    return only(Channel(lambda message: (), apply), clients)


def constant(clients: Clients, value: float) -> Channel:
    """Hostile clients send one number in all places: 0, anything huge, an infinity or a NaN.

    Args:
      clients: who is hostile, see `sign_flipping`.
      value: the number; `float("nan")` and `float("inf")` are numbers here; traceable.

    Returns:
      A `Channel` for any algorithm.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    special = isinstance(value, float) and not math.isfinite(value)
    validation.real("value", 0.0 if special else value, scalar=True)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        filled = jax.tree.map(lambda x: jnp.full_like(x, value), messages)
        return filled, weights, state, {}

    return only(Channel(lambda message: (), apply), clients)


def one_sided(clients: Clients, size: float = 0.5) -> Channel:
    """Hostile clients send uniform noise, below 0 in the first half of the columns, above in the rest.

        x[..., c] ~ U(-size, 0) for c < C // 2,  U(0, size) for the others         C the last axis

    Of a classifier's last layer it pushes all features the same way for a class. The noise of Bristle.

    Args:
      clients: who is hostile, see `sign_flipping`.
      size: > 0, in the units of the message; traceable.

    Returns:
      A `Channel` for any algorithm.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Verbraeken, de Vos and Pouwelse, Bristle, arXiv 2110.11006, the code of its authors.
    """
    validation.real("size", size, low=0.0, low_open=True, scalar=True)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        leaves, structure = jax.tree.flatten(messages)
        keys = jax.random.split(sending.key, len(leaves))

        def noise(leaf: Array, key: Array) -> Array:
            drawn = jax.random.uniform(key, leaf.shape, leaf.dtype) * jnp.asarray(size, leaf.dtype)
            columns = leaf.shape[-1]
            return jnp.where(jnp.arange(columns) < columns // 2, -drawn, drawn)

        sent = [noise(leaf, key) for leaf, key in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(structure, sent), weights, state, {}

    return only(Channel(lambda message: (), apply), clients)


def gaussian(clients: Clients, deviation: float = 1.0) -> Channel:
    """Hostile clients send noise N(0, deviation^2) in the place of their message, each its own.

    Args:
      clients: who is hostile, see `sign_flipping`.
      deviation: standard deviation > 0, in the units of the message; traceable.

    Returns:
      A `Channel` for any algorithm.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("deviation", deviation, low=0.0, low_open=True, scalar=True)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        leaves, structure = jax.tree.flatten(messages)
        keys = jax.random.split(sending.key, len(leaves))
        noise = [
            jnp.asarray(deviation, leaf.dtype) * jax.random.normal(own, leaf.shape, leaf.dtype)
            for leaf, own in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, noise), weights, state, {}

    return only(Channel(lambda message: (), apply), clients)


def uniform(clients: Clients, low: float = 0.0, high: float = 1.0) -> Channel:
    """Hostile clients send numbers drawn uniformly from [low, high] in the place of their message.

    All of one sign, as by default, the messages of two hostile clients are alike: their cosine is 3/4.

    Args:
      clients: who is hostile, see `sign_flipping`.
      low: the least number, in the units of the message; traceable.
      high: the largest, traceable.

    Returns:
      A `Channel` for any algorithm.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("low", low, scalar=True)
    validation.real("high", high, scalar=True)
    if not (validation.is_traced(low) or validation.is_traced(high)) and not low < high:
        raise ValueError(f"high must be above low, got {high} and {low}. Swap them.")

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        leaves, structure = jax.tree.flatten(messages)
        keys = jax.random.split(sending.key, len(leaves))
        drawn = [
            jax.random.uniform(own, leaf.shape, leaf.dtype, low, high)
            for leaf, own in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, drawn), weights, state, {}

    return only(Channel(lambda message: (), apply), clients)


def zeroed(clients: Clients, share: float = 0.1) -> Channel:
    """Hostile clients send their message with some of its numbers, drawn anew each time, set to 0.

    Args:
      clients: who is hostile, see `sign_flipping`.
      share: the probability in [0, 1] of each number to be lost, traceable.

    Returns:
      A `Channel` for any algorithm.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("share", share, low=0.0, high=1.0, scalar=True)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], Any, Metrics]:
        leaves, structure = jax.tree.flatten(messages)
        keys = jax.random.split(sending.key, len(leaves))
        left = [
            jnp.where(jax.random.bernoulli(own, share, leaf.shape), 0, leaf)
            for leaf, own in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, left), weights, state, {}

    return only(Channel(lambda message: (), apply), clients)
