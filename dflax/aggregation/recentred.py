"""A rule of what messages add to its last result."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message
from dflax.algorithm import Metrics


class Recentred(NamedTuple):
    """What a recentred rule remembers.

    Attributes:
      centre: v, the last result, in float32 or wider.
      rule: the state of the rule within.
    """

    centre: Message
    rule: Any


def recentred(rule: Aggregator) -> Aggregator:
    """A rule applied to the messages' differences from its last result.

        v <- v + rule(x_i - v)                                                    v is the result

    It starts at v = 0. With `norm_bounding` it is one step of `centred_clipping`. What the rule adds
    beside, noise for privacy say, moves the centre too, so that a public result is a public centre.
    When nobody reports the result is 0, and v stays for the next round.

    Args:
      rule: any `Aggregator`.

    Returns:
      An `Aggregator` with the rule's metrics, whose state is `Recentred`.

    Raises:
      TypeError: naming the argument.

    References:
      Karimireddy, He and Jaggi, Learning from History for Byzantine Robust Optimization,
      arXiv 2012.10333.
    """
    validation.instance("rule", rule, Aggregator, "For example norm_bounding(1.0).")

    def init(message: Message) -> Recentred:
        centre = jax.tree.map(
            lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.result_type(jnp.float32, leaf)), message
        )
        return Recentred(centre, rule.init(message))

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Recentred, combining: Combining
    ) -> tuple[Message, Recentred, Metrics]:
        away = jax.tree.map(lambda x, v: x.astype(v.dtype) - v, messages, state.centre)
        change, inner, metrics = rule.apply(away, weights, state.rule, combining)
        anybody = jnp.any(weights > 0)
        after = jax.tree.map(
            lambda v, d: jnp.where(anybody, v + d.astype(v.dtype), v), state.centre, change
        )
        out = jax.tree.map(lambda v, x: jnp.where(anybody, v, 0).astype(x.dtype), after, messages)
        return out, Recentred(after, inner), metrics

    return Aggregator(init, apply)
