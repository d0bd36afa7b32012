"""The mean of directions: every message at the same length."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax.aggregation.aggregator import Aggregator, Combining, Message, counted_sum
from dflax.aggregation.combination import count_dropped
from dflax.aggregation.rows.row_norms import row_norms, who_counts
from dflax.algorithm import Metrics


def mean_of_normalised() -> Aggregator:
    """The weighted mean of the messages' directions.

        out = sum_i w_i x_i / |x_i| / sum_i w_i                   norms over all parameters, 0 / 0 = 0

    A message's length does not count, so arbitrary ones of the share a of the weight move the result by
    a at most; the result has length 1 at most, so the server's rate is the length of its step. A message
    with a NaN or an infinity counts as one that did not arrive; the metric `messages_dropped` counts
    them.

    Returns:
      An `Aggregator` without state; 0 when nobody reports. It makes (0.5, 0.5) of (3, 0), (0, 0.1).
    """

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        present, dropped = who_counts(messages, weights)
        norms = row_norms(messages, present=present)
        given = jnp.where(present, weights, 0)
        total = given.sum()
        shares = given / jnp.where(total > 0, total, 1)
        long = present & (norms > 0)
        factors = jnp.where(long, shares / jnp.where(long, norms, 1), 0)
        return counted_sum(messages, factors), state, count_dropped({}, dropped)

    return Aggregator(lambda message: (), apply)
