"""Messages cut to a length before a rule sees them: static clipping, ARC, and norm bounding."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message, counted_sum, mean
from dflax.aggregation.combination import count_dropped
from dflax.aggregation.rows.row_norms import row_norms, scaled_rows, who_counts
from dflax.aggregation.tolerance import require_faulty, require_messages, tolerated
from dflax.algorithm import Metrics
from dflax.clients import select

FIX = "For example dflax.aggregation.median()."


def static_clipping(rule: Aggregator, radius: float | Float[Array, ""] = 2.0) -> Aggregator:
    """A rule that sees messages of length c at most.

        out = rule(x_i min(1, c / |x_i|))                    norms over all parameters, c = radius

    A message with a NaN or an infinity counts as one that did not arrive; the metric `messages_dropped`
    counts them, and `messages_clipped` those that were longer than c.

    Args:
      rule: any `Aggregator`.
      radius: c > 0, in the units of a message's norm; traceable.

    Returns:
      An `Aggregator` with the rule's state and metrics. With c = 2 and the mean it makes (0.5, 1.5) of
      the messages (0, 3), (1, 1).

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("rule", rule, Aggregator, FIX)
    validation.real("radius", radius, low=0.0, low_open=True, scalar=True)
    return _clipped(rule, lambda norms, present: jnp.asarray(radius, norms.dtype))


def coordinate_clipping(rule: Aggregator, limit: float | Float[Array, ""]) -> Aggregator:
    """A rule that sees messages whose every number lies in [-limit, limit]; others are cut.

    Unlike a norm this bounds how far a message moves each coordinate, but of all d of them together
    only by limit sqrt(d).

    Args:
      rule: any `Aggregator`.
      limit: > 0, in the units of a coordinate; traceable.

    Returns:
      An `Aggregator` with the rule's state and metrics. With limit 2 and the mean it makes (1, 1.5) of
      the messages (0, 3), (2, 1).

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("rule", rule, Aggregator, FIX)
    validation.real("limit", limit, low=0.0, low_open=True, scalar=True)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        most = jax.tree.map(lambda leaf: jnp.asarray(limit, leaf.dtype), messages)
        cut = jax.tree.map(lambda leaf, b: jnp.clip(leaf, -b, b), messages, most)
        return rule.apply(cut, weights, state, combining)

    return Aggregator(rule.init, apply)


def norm_bounding(radius: float | Float[Array, ""]) -> Aggregator:
    """The mean by weight of messages cut to the length c.

        out = sum_i w_i x_i min(1, c / |x_i|) / sum_i w_i                                  c = radius

    Whatever arbitrary messages hold, those of the share a of the weight move the result by a c at most.
    Metrics are those of `static_clipping`.

    Args:
      radius: c > 0, in the units of a message's norm; traceable.

    Returns:
      An `Aggregator` without state. With c = 2 it makes (0.5, 1.5) of the messages (0, 3), (1, 1).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Sun et al., Can You Really Backdoor Federated Learning?, arXiv 1911.07963.
    """
    return static_clipping(mean(), radius)


def arc(rule: Aggregator, faulty: int | Int[Array, ""]) -> Aggregator:
    """Adaptive robust clipping: the longest messages are cut to the length of the next one.

        k = floor(2 f (m - f) / m);  the k longest of m messages are cut to the length of the (k + 1)-th
        out = rule(what is left)                                                            f = faulty

    m messages arrived, of which up to f may be arbitrary: m > 2 f. Where only m <= 2 f arrive in a
    round, f is `(m - 1) // 2` there. Robustness of the rule is kept, and the result is bounded by honest
    messages. Dropped and clipped messages are counted as in `static_clipping`.

    Args:
      rule: any `Aggregator`; usually a robust one behind `nnm`: `arc(nnm(median(), 1), 1)`.
      faulty: f >= 0, traceable.

    Returns:
      An `Aggregator` with the rule's state and metrics. With f = 1 the rule sees 1, 2, 3, 4, 4 of the
      messages 1, 2, 3, 4, 100, so with the mean it makes 2.8.

    Raises:
      TypeError, ValueError: naming the argument; and, when the messages of a round are seen, n <= 2 f.

    References:
      Allouah et al., Adaptive Gradient Clipping for Robust Federated Learning, arXiv 2405.14432.
    """
    validation.instance("rule", rule, Aggregator, FIX)
    require_faulty(faulty)

    def radius(norms: Float[Array, " m"], present: Array) -> Float[Array, ""]:
        require_messages("ARC", faulty, len(norms))
        count = jnp.sum(present, dtype=jnp.int32)
        bears = tolerated(faulty, count)
        cut = 2 * bears * (count - bears) // jnp.maximum(count, 1)
        descending = -jnp.sort(jnp.where(present, -norms, 0))
        return descending[cut]

    return _clipped(rule, radius)


def _clipped(rule: Aggregator, radius: Any) -> Aggregator:
    """The rule of messages cut to the length `radius(norms, present)`."""

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        present, dropped = who_counts(messages, weights)
        norms = jnp.where(present, row_norms(messages, present=present), 0)
        most = radius(norms, present)
        longer = norms > most
        factors = jnp.where(longer, most / jnp.where(longer, norms, 1), 1)
        weights = jnp.where(present, weights, 0)
        clipped = jnp.sum(longer).astype(jnp.float32)
        if rule.linear is not None:
            # The messages are as they were, and nothing of their size is made.
            out = counted_sum(messages, rule.linear(weights) * factors)
            metrics: Metrics = {}
        else:
            nothing = jax.tree.map(jnp.zeros_like, messages)
            cut = scaled_rows(select(present, messages, nothing), factors)
            out, state, metrics = rule.apply(cut, weights, state, combining)
        return out, state, count_dropped(metrics, dropped) | {"messages_clipped": clipped}

    return Aggregator(rule.init, apply)
