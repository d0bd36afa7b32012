"""Means of messages before a rule sees them: nearest-neighbour mixing and bucketing."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.aggregation.aggregator import (
    Aggregator,
    Combining,
    Message,
    counted_sum,
    without_the_rest,
)
from dflax.aggregation.combination import (
    combination,
    count_dropped,
    distances_between,
    products_between,
)
from dflax.aggregation.rows.coordinates import mix_rows
from dflax.aggregation.rows.distances import nearest
from dflax.aggregation.rows.row_norms import who_counts
from dflax.aggregation.tolerance import require_faulty, require_messages, tolerated
from dflax.algorithm import Metrics

FIX = "For example dflax.aggregation.median()."


def nnm(rule: Aggregator, faulty: int | Int[Array, ""]) -> Aggregator:
    """Nearest-neighbour mixing: a rule that sees the mean of those nearest to each message instead.

        y_i = mean of the m - f messages nearest to x_i, itself among them;  out = rule(y)    f = faulty

    m messages arrived, of which up to f may be arbitrary: m > 2 f. Where only m <= 2 f arrive in a
    round, f is `(m - 1) // 2` there. A rule that is (f, kappa)-robust is so with
    8 f / (m - f) (kappa + 1) behind it: as good as can be where honest messages differ, up to a
    constant, with the median, the trimmed mean, the geometric median and Krum. A message with a NaN or
    an infinity, or so far away that its product overflows, counts as one that did not arrive; the metric
    `messages_dropped` counts them.

    A `combination` such as `krum` sees the means' products, `A G A'` of the matrix A of who is near
    whom, and the means are never made.

    Args:
      rule: any `Aggregator`.
      faulty: f >= 0, traceable.

    Returns:
      An `Aggregator` with the rule's state and metrics. With f = 1 the rule sees 2.5, 2.5, 2.5, 2.5,
      27.25 of the messages 1, 2, 3, 4, 100, so with the median it makes 2.5.

    Raises:
      TypeError, ValueError: naming the argument; and, when the messages of a round are seen, n <= 2 f.

    References:
      Allouah et al., Fixing by Mixing, arXiv 2302.01772.
    """
    validation.instance("rule", rule, Aggregator, FIX)
    require_faulty(faulty)

    def mixing(products: Float[Array, "m m"], present: Bool[Array, " m"]) -> Float[Array, "m m"]:
        require_messages("NNM", faulty, len(present))
        count = jnp.sum(present, dtype=jnp.int32)
        near = jnp.maximum(count - tolerated(faulty, count), 1)
        rows = nearest(distances_between(products, present), near)
        return jnp.where(present[:, None], rows, 0)

    if rule.shares is not None:
        inner = rule.shares

        def shares(
            products: Float[Array, "m m"], present: Bool[Array, " m"], key: Key[Array, ""]
        ) -> tuple[Float[Array, " m"], Metrics]:
            mixed = mixing(products, present)
            given, metrics = inner(_crossed(mixed, products), present, key)
            return _back(jnp.where(present, given, 0), mixed), metrics

        return combination(shares)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        products, present, dropped = products_between(messages, weights)
        near = mixing(products, present)
        means = without_the_rest(lambda x, a: mix_rows(a, x), messages, near, present)
        out, state, metrics = rule.apply(means, jnp.where(present, weights, 0), state, combining)
        return out, state, count_dropped(metrics, dropped)

    return Aggregator(rule.init, apply)


def bucketing(rule: Aggregator, size: int) -> Aggregator:
    """A rule that sees the means of buckets, into which the messages are dealt at random.

        y_b = sum_{i in b} w_i x_i / sum_{i in b} w_i,   weight sum_{i in b} w_i;   out = rule(y)

    Of the m messages that arrived, each bucket holds `size`, the last one what is left. Every arbitrary
    message may spoil a bucket, so the rule has to bear f of the ceil(m / size) buckets; the theory wants
    size <= m / (2 f). With the mean for a rule it is the mean. A message with a NaN or an infinity
    counts as one that did not arrive; the metric `messages_dropped` counts them.

    Args:
      rule: any `Aggregator`, which sees ceil(n / size) messages.
      size: messages in a bucket, >= 1, static.

    Returns:
      An `Aggregator` with the rule's state and metrics. With size 1 it makes of messages what the rule
      makes of them, in another order.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Karimireddy, He and Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing,
      arXiv 2006.09365.
    """
    validation.instance("rule", rule, Aggregator, FIX)
    validation.integer("size", size, low=1)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        deal, inside = jax.random.split(combining.key)
        present, dropped = who_counts(messages, weights)
        held = jnp.where(present, weights, 0).astype(jnp.promote_types(weights.dtype, jnp.float32))
        rank = jnp.argsort(jnp.argsort(jnp.where(present, jax.random.uniform(deal, held.shape), 2)))
        buckets = jnp.arange(-(-len(held) // size))
        within = jnp.where(buckets[:, None] == rank // size, held, 0)
        totals = within.sum(1)
        shares = within / jnp.where(totals > 0, totals, 1)[:, None]
        if rule.linear is not None:
            out = counted_sum(messages, _back(rule.linear(totals), shares))
            return out, state, count_dropped({}, dropped)
        means = without_the_rest(lambda x, a: mix_rows(a, x), messages, shares, present)
        # A bucket is nobody's message.
        inner = combining._replace(key=inside, senders=None)
        out, state, metrics = rule.apply(means, totals, state, inner)
        return out, state, count_dropped(metrics, dropped)

    return Aggregator(rule.init, apply)


def _crossed(mixing: Float[Array, "r m"], products: Float[Array, "m m"]) -> Float[Array, "r r"]:
    exact = jax.lax.Precision.HIGHEST
    return jnp.matmul(jnp.matmul(mixing, products, precision=exact), mixing.T, precision=exact)


def _back(given: Float[Array, " r"], mixing: Float[Array, "r m"]) -> Float[Array, " m"]:
    return jnp.matmul(given, mixing, precision=jax.lax.Precision.HIGHEST)
