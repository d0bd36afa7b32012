"""Krum after nearest-neighbour mixing, on the distances between the messages alone."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.aggregation import (
    Aggregator,
    counted_mean,
    distances_of_mixtures,
    finite_rows,
    nearest,
    squared_distances,
)
from dflax.aggregation.aggregator import Message
from dflax.algorithm import Metrics


def krum_after_nnm(faulty: int) -> Aggregator:
    """Replaces every message by the mean of those nearest to it; then Krum chooses one of the means.

        y_i = mean of the m - f messages nearest to x_i, itself among them
        s_i = sum of |y_i - y_j|^2 over the m - f - 2 means j nearest to y_i
        out = y_i with the least s_i                                 of equals the first; f = faulty

    m messages arrived, of which up to f may be arbitrary: m >= 2 f + 3. With fewer, Krum looks at one
    other mean at least, where there is one. Mixing makes Krum as good as a robust rule can be where
    honest messages differ, up to a constant. Both steps need the messages' squared distances alone. A
    message with a NaN or an infinity counts as one that did not arrive. Weights only tell who
    reported.

    Args:
      faulty: f >= 0, static.

    Returns:
      An `Aggregator` without state or metrics; 0 when nobody reports. With f = 1 it makes 2.5 of the
      messages 1, 2, 3, 4, 100.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Allouah et al., Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity,
      arXiv 2302.01772; Blanchard et al., Machine Learning with Adversaries, arXiv 1703.02757.
    """
    validation.integer("faulty", faulty, low=0)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], key: Key[Array, ""]
    ) -> tuple[Message, tuple[()], Metrics]:
        present = (weights > 0) & finite_rows(messages)
        count = jnp.sum(present)
        between = squared_distances(messages, present.astype(weights.dtype))
        mixing = nearest(between, jnp.maximum(count - faulty, 1))
        mixed = distances_of_mixtures(between, mixing)
        close = nearest(mixed, jnp.maximum(count - faulty - 1, jnp.minimum(count, 2)))
        scores = jnp.sum(jnp.where(close > 0, mixed, 0), axis=1)
        chosen = jnp.argmin(jnp.where(present, scores, jnp.inf))
        return counted_mean(messages, jnp.where(present, mixing[chosen], 0)), state, {}

    return Aggregator(lambda message: (), apply)
