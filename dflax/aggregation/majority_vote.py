"""The sign on which most clients agree, number by number."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax.aggregation.aggregator import Aggregator, Combining, Message
from dflax.algorithm import Metrics
from dflax.clients import weighted_mean


def majority_vote() -> Aggregator:
    """`sign(sum_i w_i sign(x_i))`: -1, 0 in a tie, or 1 for every number (signSGD with majority vote).

    The magnitudes of messages do not count, so neither does a single client that sends large ones. A
    NaN is no vote. Where clients that hold more than half of the weight agree, the result is their
    sign, whatever the others send.

    The server's learning rate is the length of its step in every coordinate:
    `fedavg(loss, optimizer, optax.sgd(0.001), channel=dflax.channel.sign(scaled=False),
    aggregator=majority_vote())` sends one bit a number up and, as a tie is rare, about one down.

    References:
      Bernstein et al., signSGD, arXiv 1802.04434.
    """

    def init(message: Message) -> tuple[()]:
        return ()

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        votes = jax.tree.map(lambda leaf: jnp.where(jnp.isnan(leaf), 0, jnp.sign(leaf)), messages)
        return jax.tree.map(jnp.sign, weighted_mean(votes, weights)), state, {}

    return Aggregator(init, apply)
