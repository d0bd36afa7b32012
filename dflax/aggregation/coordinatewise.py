"""Robust rules that treat every parameter for itself: the median and the trimmed mean."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message
from dflax.aggregation.rows.coordinates import map_coordinates
from dflax.aggregation.rows.order_statistics import (
    median_rows,
    require_trim,
    trimmed,
    trimmed_mean_rows,
)
from dflax.algorithm import Metrics


def median() -> Aggregator:
    """The coordinate-wise median of the messages that arrived.

    Of an even number it is the mean of the two middle ones. Weights only tell who reported: a client
    of a large weight has no more say than others. With m messages of which f < m / 2 are arbitrary,
    each coordinate of the result lies between those of the others. NaNs count as larger than +inf,
    so that a message of NaNs is one arbitrary message.

    Returns:
      An `Aggregator` without state or metrics; 0 when nobody reports. Of the messages (1, 5), (2, 4),
      (9, 6) it makes (2, 5).

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> messages, weights = jnp.array([[1.0], [2.0], [3.0], [4.0], [100.0]]), jnp.ones(5)
      >>> rule = dx.aggregation.median()
      >>> combining = dx.aggregation.Combining(jax.random.key(0))
      >>> combined, *_ = rule.apply(messages, weights, rule.init(messages[0]), combining)
      >>> float(combined[0])
      3.0

    References:
      Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates,
      arXiv 1803.01498.
    """

    def init(message: Message) -> tuple[()]:
        return ()

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        return map_coordinates(median_rows, messages, weights > 0), state, {}

    return Aggregator(init, apply)


def trimmed_mean(trim: int) -> Aggregator:
    """In each coordinate, the mean without the `trim` smallest and the `trim` largest values.

        out_j = 1 / (m - 2 f) sum_{r = f}^{m - f - 1} x_(r)j         x_(0)j <= x_(1)j <= ..., f = trim

    Tolerates f arbitrary messages among m > 2 f. Where only m <= 2 f clients report in a round, as many
    are trimmed as can be, (m - 1) // 2 on each side, which is the median; the metric `trimmed` tells
    how many it were, and that it is below f says that f arbitrary messages were not tolerated. Weights
    only tell who reported. NaNs count as larger than +inf.

    Args:
      trim: f >= 0, static; a round must have n > 2 f clients.

    Returns:
      An `Aggregator` without state; 0 when nobody reports. With trim 1 it makes 3 of 1, 2, 3, 4, 100.

    Raises:
      TypeError: a trim that is no integer.
      ValueError: a trim below 0; and, when the messages of a round are seen, n <= 2 f of them.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> messages, weights = jnp.array([[1.0], [2.0], [3.0], [4.0], [100.0]]), jnp.ones(5)
      >>> rule = dx.aggregation.trimmed_mean(1)
      >>> combining = dx.aggregation.Combining(jax.random.key(0))
      >>> combined, *_ = rule.apply(messages, weights, rule.init(messages[0]), combining)
      >>> float(combined[0])
      3.0

    References:
      Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates,
      arXiv 1803.01498.
    """
    validation.integer("trim", trim, low=0)

    def init(message: Message) -> tuple[()]:
        return ()

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        require_trim(trim, validation.leading_axis("messages", messages))
        present = weights > 0

        def rule(values: Float[Array, "m c"], present: Array) -> Float[Array, " c"]:
            return trimmed_mean_rows(values, trim, present)

        count = trimmed(trim, jnp.sum(present, dtype=jnp.int32))
        combined = map_coordinates(rule, messages, present)
        return combined, state, {"trimmed": count.astype(jnp.float32)}

    return Aggregator(init, apply)
