"""Rules that average, in each coordinate, the values nearest to a robust middle: MeaMed and Phocas."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax.aggregation.aggregator import Aggregator, Combining, Message
from dflax.aggregation.rows.column_blocks import map_columns
from dflax.aggregation.rows.coordinates import map_coordinates
from dflax.aggregation.rows.distances import finite_rows
from dflax.aggregation.rows.order_statistics import sorted_rows
from dflax.aggregation.tolerance import require_faulty, require_messages, tolerated
from dflax.algorithm import Metrics
from dflax.clients import platform
from dflax.validation import leading_axis

# Entries of a block that is sorted and read a few times: they stay in the second-level cache.
ELEMENTS = 1 << 15
Middle = Literal["median", "trimmed mean"]


def mea_med(faulty: int | Int[Array, ""]) -> Aggregator:
    """Mean around the median: in each coordinate the mean of the m - f values nearest to the median.

        out_j = mean of the m - f values x_ij of least |x_ij - median_i x_ij|             f = faulty

    m messages arrived, of which up to f may be arbitrary: m > 2 f. Where only m <= 2 f arrive in a
    round, f is `(m - 1) // 2` there; the metric `tolerated` tells. Of values equally near, those further
    down count. A message with a NaN or an infinity counts as one that did not arrive; the metric
    `messages_dropped` counts them. Weights only tell who reported.

    Args:
      faulty: f >= 0, traceable.

    Returns:
      An `Aggregator` without state; 0 when nobody reports. With f = 1 it makes 2.5 of 1, 2, 3, 4, 100.

    Raises:
      TypeError, ValueError: naming the argument; and, when the messages of a round are seen, n <= 2 f.

    References:
      Xie, Koyejo and Gupta, Generalized Byzantine-tolerant SGD, arXiv 1802.10116.
    """
    return _near("MeaMed", "median", faulty)


def phocas(faulty: int | Int[Array, ""]) -> Aggregator:
    """Phocas: in each coordinate the mean of the m - f values nearest to the trimmed mean.

        out_j = mean of the m - f values x_ij of least |x_ij - trimmed mean of x_.j|        f = faulty

    The trimmed mean is without the f least and the f largest values. Conditions, ties and metrics are
    those of `mea_med`.

    Args:
      faulty: f >= 0, traceable.

    Returns:
      An `Aggregator` without state; 0 when nobody reports. With f = 1 it makes 2.5 of 1, 2, 3, 4, 100.

    Raises:
      TypeError, ValueError: as `mea_med`.

    References:
      Xie, Koyejo and Gupta, Phocas: Dimensional Byzantine-resilient SGD, arXiv 1805.09682.
    """
    return _near("Phocas", "trimmed mean", faulty)


def nearest_mean_rows(
    values: Float[Array, "n d"],
    present: Bool[Array, " n"],
    kept: Int[Array, ""],
    trim: Int[Array, ""] | None = None,
) -> Float[Array, " d"]:
    """In each coordinate the mean of the values nearest to the median, or to the trimmed mean.

    In order, the k values nearest to any point stand side by side: a run is found, and nothing is
    sorted by distance. Of values equally near, those further down count.

    Args:
      values: `[n, d]`, finite in the rows that are present.
      present: `[n]`.
      kept: k in [1, number of rows present].
      trim: None for the median; else how many values the trimmed mean leaves out on each side.

    Returns:
      `[d]`; 0 where nobody is present.
    """
    count = jnp.sum(present, dtype=jnp.int32)
    rank = jnp.arange(len(values), dtype=jnp.int32)
    low = (count - 1) // 2 if trim is None else trim
    middle = (rank >= low) & (rank < count - low)

    def of(block: Float[Array, "n c"]) -> Float[Array, " c"]:
        ordered = jnp.where((rank < count)[:, None], sorted_rows(block, present), 0)
        centre = _mean_of(ordered, middle[:, None])
        # The run moves up as long as what it would take in is nearer than what it would leave.
        after = jnp.take(ordered, jnp.minimum(rank + kept, len(values) - 1), axis=0)
        nearer = (rank < count - kept)[:, None] & (after - centre < centre - ordered)
        first = nearer.sum(0)
        return _mean_of(ordered, (rank[:, None] >= first) & (rank[:, None] < first + kept))

    width = 1 << 30 if platform() != "cpu" else max(16, ELEMENTS // len(values))
    return map_columns(of, values, width)


def _mean_of(values: Float[Array, "n c"], chosen: Bool[Array, "n c"]) -> Float[Array, " c"]:
    return jnp.where(chosen, values, 0).sum(0) / jnp.maximum(chosen.sum(0), 1)


def _near(rule: str, middle: Middle, faulty: int | Int[Array, ""]) -> Aggregator:
    require_faulty(faulty)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        require_messages(rule, faulty, leading_axis("messages", messages))
        reported, finite = weights > 0, finite_rows(messages)
        present = reported & finite
        count = jnp.sum(present, dtype=jnp.int32)
        bears = tolerated(faulty, count)

        def of(
            values: Float[Array, "m c"], present: Bool[Array, " m"], bears: Int[Array, ""]
        ) -> Float[Array, " c"]:
            kept = jnp.maximum(jnp.sum(present, dtype=jnp.int32) - bears, 1)
            trim = None if middle == "median" else bears
            return nearest_mean_rows(values, present, kept, trim)

        metrics = {
            "tolerated": bears.astype(jnp.float32),
            "messages_dropped": jnp.sum(reported & ~finite).astype(jnp.float32),
        }
        return map_coordinates(of, messages, present, bears), state, metrics

    return Aggregator(lambda message: (), apply)
