"""A rule that sees a random part of the messages."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message
from dflax.algorithm import Metrics
from dflax.participation import at_least_one


def sampled(rule: Aggregator, probability: float | Float[Array, ""]) -> Aggregator:
    """A rule that sees each message independently with the same probability, and at least one.

    The draw is conditioned on at least one message that arrived being seen. Unlike a participation it
    does not keep clients from working: whoever is not seen has sent its message all the same, and
    remembers what it did. The metric `messages_sampled` counts those that the rule saw.

    Args:
      rule: any `Aggregator`.
      probability: q in (0, 1], traceable.

    Returns:
      An `Aggregator` with the rule's state and metrics.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("rule", rule, Aggregator, "For example dflax.aggregation.mean().")
    validation.probability("probability", probability, low_open=True)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        join_key, first_key, rule_key = jax.random.split(combining.key, 3)
        seen = at_least_one(join_key, first_key, probability, weights > 0)
        out, state, metrics = rule.apply(
            messages, jnp.where(seen, weights, 0), state, combining._replace(key=rule_key)
        )
        return out, state, metrics | {"messages_sampled": jnp.sum(seen).astype(jnp.float32)}

    return Aggregator(rule.init, apply)
