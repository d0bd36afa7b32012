"""Clients that repeat what an honest client says."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.algorithm import Metrics
from dflax.attacks.collusion import Clients, Messages, replaced
from dflax.channel import Channel, Sending
from dflax.channel.channel import membership


def mimic(clients: Clients, victim: int) -> Channel:
    """Hostile clients send what one honest client sends, so that it counts several times.

    No rule can tell such messages from honest ones; where honest clients' data differ, the victim's
    are over-represented. In a round in which the victim does not report they send what they should.

    Args:
      clients: who is hostile, see `colluding`.
      victim: the number of the client that is copied, >= 0.

    Returns:
      A `Channel` for any algorithm.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Karimireddy, He and Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing,
      arXiv 2006.09365.
    """
    hostile_among = membership(clients)
    validation.integer("victim", victim, low=0)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        hostile = hostile_among(sending) & (weights > 0)
        theirs = (sending.senders == victim) & (weights > 0)
        copied = jax.tree.map(lambda leaf: leaf[jnp.argmax(theirs)], messages)
        return replaced(messages, hostile & jnp.any(theirs), copied), weights, state, {}

    return Channel(lambda message: (), apply)
