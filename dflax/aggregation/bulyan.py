"""Bulyan: Krum again and again, then what is near the median in each coordinate."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax.aggregation.aggregator import Aggregator, Combining, Message
from dflax.aggregation.combination import count_dropped, distances_between, products_between
from dflax.aggregation.krum import krum_scores
from dflax.aggregation.near_the_middle import nearest_mean_rows
from dflax.aggregation.rows.coordinates import map_coordinates
from dflax.aggregation.tolerance import require_faulty, require_messages, tolerated
from dflax.algorithm import Metrics
from dflax.validation import leading_axis


def bulyan(faulty: int | Int[Array, ""]) -> Aggregator:
    """Bulyan: m - 2 f messages by repeated Krum, then in each coordinate those nearest to their median.

        S = {}; m - 2 f times: move Krum's choice among the r messages that are left to S, with the
            r - f - 2 nearest of them, one at least, in a score
        out_j = mean of the m - 4 f values x_ij, i in S, nearest to the median of S      f = faulty

    m messages arrived, of which up to f may be arbitrary: m >= 4 f + 3. Where only fewer arrive in a
    round, f is `(m - 3) // 4` there; the metric `tolerated` tells. A message with a NaN or an infinity
    counts as one that did not arrive; the metric `messages_dropped` counts them. Weights only tell who
    reported.

    Args:
      faulty: f >= 0, traceable.

    Returns:
      An `Aggregator` without state; 0 when nobody reports. With f = 1 it takes 3, 4, 2, 5, 1 of the
      messages 1, 2, 3, 4, 5, 6, 100, in this order, and makes 3.

    Raises:
      TypeError, ValueError: naming the argument; and, when the messages of a round are seen, fewer than
        4 f + 3.

    References:
      El Mhamdi, Guerraoui and Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium,
      arXiv 1802.07927.
    """
    require_faulty(faulty)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        rows = leading_axis("messages", messages)
        require_messages("Bulyan", faulty, rows, factor=4, more=3)
        products, present, dropped = products_between(messages, weights)
        count = jnp.sum(present, dtype=jnp.int32)
        bears = tolerated(faulty, count, factor=4, more=3)
        chosen = _chosen(distances_between(products, present), present, bears)

        def of(
            values: Float[Array, "m c"], chosen: Bool[Array, " m"], bears: Int[Array, ""]
        ) -> Float[Array, " c"]:
            kept = jnp.sum(chosen, dtype=jnp.int32) - 2 * bears
            return nearest_mean_rows(values, chosen, jnp.maximum(kept, 1))

        metrics = count_dropped({"tolerated": bears.astype(jnp.float32)}, dropped)
        return map_coordinates(of, messages, chosen, bears), state, metrics

    return Aggregator(lambda message: (), apply)


def _chosen(
    distances: Float[Array, "m m"], present: Bool[Array, " m"], bears: Int[Array, ""]
) -> Bool[Array, " m"]:
    """The m - 2 f messages that Krum chooses one after another."""
    wanted = jnp.sum(present, dtype=jnp.int32) - 2 * bears
    itself = jnp.eye(len(present), dtype=bool)

    def turn(number: Array, left: Bool[Array, " m"]) -> Bool[Array, " m"]:
        among = jnp.where(left[:, None] & left | itself, distances, jnp.inf)
        count = jnp.sum(left, dtype=jnp.int32)
        best = jnp.argmin(krum_scores(among, left, count - bears - 2))
        return left & ((number >= wanted) | (jnp.arange(len(left)) != best))

    return present & ~jax.lax.fori_loop(0, len(present), turn, present)
