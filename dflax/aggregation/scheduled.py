"""A rule whose parameters follow the round."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message
from dflax.algorithm import Metrics


def scheduled(make: Callable[[Int[Array, ""]], Aggregator]) -> Aggregator:
    """The rule `make(t)` in round t: radii, deviations and shares that change as a run goes on.

        scheduled(lambda t: norm_bounding(0.5 * 0.99**t))

    Args:
      make: from the round's number, `[]` int32, to an `Aggregator`. All have the same state.

    Returns:
      An `Aggregator` with the state and the metrics of the rules.

    Raises:
      TypeError: naming the argument.
    """
    validation.function("make", make, "It gets the round's number.", takes=1)
    fix = "Return for example dflax.aggregation.norm_bounding(0.99**t)."
    first = make(jnp.int32(0))
    validation.instance("what make returns", first, Aggregator, fix)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        return make(jnp.asarray(combining.index)).apply(messages, weights, state, combining)

    return Aggregator(first.init, apply)
