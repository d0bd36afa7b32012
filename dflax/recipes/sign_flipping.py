"""Clients that send the opposite of what they should."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dflax.algorithm import Metrics
from dflax.channel import Channel, Sending, only


def sign_flipping(
    clients: int | Int[Array, " k"] | Bool[Array, " n"] | Sequence[int],
) -> Channel:
    """A channel over which some clients send the negative of their message, and all others the truth.

    Args:
      clients: their numbers, one or several, or a mask `[n]`, see `channel.only`: a liar is known by
        its number, whoever is sampled.

    Returns:
      A `Channel` for any algorithm. Chain it before what happens on the way:
      `channel.chain(sign_flipping(3), channel.finite_only())`.

    Raises:
      TypeError, ValueError: naming the argument.
    """

    def apply(
        messages: PyTree[Array], weights: Float[Array, " m"], state: Any, sending: Sending
    ) -> tuple[PyTree[Array], Float[Array, " m"], Any, Metrics]:
        return jax.tree.map(jnp.negative, messages), weights, state, {}

    return only(Channel(lambda message: (), apply), clients)
