"""Rules that take a combination of the messages, found on the messages' products alone."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message, counted_mean
from dflax.aggregation.rows.distances import distances_of, robust_products
from dflax.algorithm import Metrics

Shares = Callable[
    [Float[Array, "m m"], Bool[Array, " m"], Key[Array, ""]], tuple[Float[Array, " m"], Metrics]
]


def combination(shares: Shares) -> Aggregator:
    """The rule `out = sum_i a_i x_i / sum_i a_i`, a found on the messages' products alone.

        a = shares(G, present, key),    G_ij = <x_i - c, x_j - c>       norms over all parameters

    Messages are read four times whatever the rule does, and nothing of a model's size is made but the
    result. The point c is the coordinate-wise median by weight, so that neither a common offset nor
    outliers cost digits; a rule must not depend on it. Weights only tell who reported.

    A message with a NaN or an infinity, or so far away that its product overflows, counts as one that
    did not arrive. The metric `messages_dropped` counts them.

    Args:
      shares: `(G, present, key) -> (a, metrics)`: `[m, m]`, 0 in the rows and columns of messages that
        do not count, and `[m]`, who counts, to `[m]`, >= 0. See `distances_between`.

    Returns:
      An `Aggregator` without state; 0 when nobody reports. For example the message nearest to all others
      is `combination(lambda G, present, key: (scores(G, present) == best, {}))`.

    Raises:
      TypeError: no function of three arguments.
    """
    validation.function("shares", shares, "Say (products, present, key) -> (shares, {}).", takes=3)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        products, present, dropped = products_between(messages, weights)
        given, metrics = shares(products, present, combining.key)
        combined = counted_mean(messages, jnp.where(present, given, 0))
        return combined, state, count_dropped(metrics, dropped)

    return Aggregator(lambda message: (), apply, shares)


def products_between(
    messages: Message, weights: Float[Array, " m"]
) -> tuple[Float[Array, "m m"], Bool[Array, " m"], Float[Array, ""]]:
    """The products of `combination`, who counts, and how many that reported do not."""
    products, finite = robust_products(messages, weights)
    whole = finite & jnp.isfinite(jnp.diagonal(products))
    reported = weights > 0
    present = whole & reported
    products = jnp.where(present[:, None] & present, products, 0)
    return products, present, jnp.sum(reported & ~whole).astype(jnp.float32)


def distances_between(
    products: Float[Array, "m m"], present: Bool[Array, " m"]
) -> Float[Array, "m m"]:
    """The squared distances `|x_i - x_j|^2`, infinite where one of the two does not count."""
    seen = present[:, None] & present | jnp.eye(len(present), dtype=bool)
    return jnp.where(seen, distances_of(products), jnp.inf)


def count_dropped(metrics: Metrics, dropped: Float[Array, ""]) -> Metrics:
    """The metrics of a rule, with `messages_dropped` on top of those that it dropped itself."""
    return metrics | {"messages_dropped": metrics.get("messages_dropped", 0) + dropped}
