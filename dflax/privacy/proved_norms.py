"""Messages that clients cut themselves, and prove to be short enough."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.aggregation import Aggregator, Combining
from dflax.aggregation.aggregator import Message
from dflax.aggregation.rows.row_norms import row_norms, scaled_rows, who_counts
from dflax.algorithm import Metrics
from dflax.channel import Sending
from dflax.channel.channel import membership
from dflax.channel.compression import numbers
from dflax.clients import select
from dflax.privacy.secure_aggregation.fixed_point import FixedPoint


def proved_norms(
    rule: Aggregator,
    radius: float | Float[Array, ""],
    encoding: FixedPoint,
    *,
    uncut: int | Int[Array, " k"] | Bool[Array, " n"] | Sequence[int] | None = None,
) -> Aggregator:
    """A rule of messages that nobody sees, each cut by its sender, who proves it.

        c_i = x_i min(1, C / |x_i|)                      by client i; those in `uncut` leave x_i as it is
        out = rule(c_i of those whose encoded message is no longer than C + 2^-(s + 1) sqrt(d))

    Norms are over all d numbers of a message. Rounding to fixed point may add the second term. The proof
    stands for a zero-knowledge proof, or for a check on secret shares: here it is computed in the clear.
    The metric `proofs_refused` counts who is left out, `messages_clipped` who cut its message,
    `messages_dropped` those with a NaN or an infinity, which count as not sent.

    Args:
      rule: usually the `mean` of a `SecureAggregation`.
      radius: C > 0, traceable.
      encoding: of that secure aggregation.
      uncut: clients that do not cut, by number or mask, see `dflax.channel.only`. None: nobody.

    Returns:
      An `Aggregator` with the rule's state and metrics.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("rule", rule, Aggregator, "For example secure_aggregation(...).mean.")
    validation.real("radius", radius, low=0.0, low_open=True, scalar=True)
    validation.instance("encoding", encoding, FixedPoint, "Take secure_aggregation(...).encoding.")
    among = None if uncut is None else membership(uncut, "uncut")

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        present, dropped = who_counts(messages, weights)
        clean = select(present, messages, jax.tree.map(jnp.zeros_like, messages))
        norms = row_norms(clean)
        cuts = present & (norms > radius)
        if among is not None:
            here = Sending(combining.key, combining.index, combining.senders, combining.clients)
            cuts &= ~among(here)
        factors = jnp.where(cuts, radius / jnp.where(cuts, norms, 1), 1)
        sent = scaled_rows(clean, factors)
        seen = jax.tree.map(
            lambda leaf: encoding.decode(encoding.wrapped(encoding.encode(leaf)), leaf.dtype), sent
        )
        size = numbers(seen) // len(weights)
        slack = 2.0 ** -(encoding.scale_bits + 1) * math.sqrt(size)
        # Of a sum of d squares in float32.
        longest = (radius + slack) * (1 + 1e-5)
        proved = present & (row_norms(seen) <= longest)
        out, state, metrics = rule.apply(sent, jnp.where(proved, weights, 0), state, combining)
        told = {
            "messages_clipped": jnp.sum(cuts).astype(jnp.float32),
            "proofs_refused": jnp.sum(present & ~proved).astype(jnp.float32),
        }
        # What the rule finds dropped are those that this one has left out.
        return out, state, metrics | told | {"messages_dropped": dropped}

    return Aggregator(rule.init, apply)
