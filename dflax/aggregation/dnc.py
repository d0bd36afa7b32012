"""Divide and conquer: without the messages that stick out along the main direction of some numbers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message, counted_mean
from dflax.aggregation.caf import worst_direction
from dflax.aggregation.combination import products_between
from dflax.aggregation.rows.distances import finite_rows
from dflax.aggregation.tolerance import require_faulty, require_messages, tolerated
from dflax.algorithm import Metrics


def dnc(
    faulty: int | Int[Array, ""],
    *,
    turns: int = 1,
    coordinates: int = 10_000,
    left_out: float = 1.0,
) -> Aggregator:
    """Divide and conquer (DnC): the mean without those that stick out along a main direction.

        T times: x' = r coordinates of the x_i;  v = top right singular vector of x' - mean of x'
                 s_i = <x'_i - mean of x', v>^2;  keep the m - floor(c f) messages of least s_i
        out = mean of the messages kept every time           T = turns, r = coordinates, c = left_out

    m messages arrived, of which up to f may be arbitrary: m > 2 f. Where only m <= 2 f arrive in a
    round, f is `(m - 1) // 2` there; the metric `tolerated` tells. With more turns fewer are kept, and
    where no message was kept every time the result is 0; the metric `messages_kept` tells. A message
    with a NaN or an infinity among the drawn numbers, or elsewhere, counts as one that did not arrive;
    the metric `messages_dropped` counts them. Weights only tell who reported.

    Args:
      faulty: f >= 0, traceable.
      turns: T >= 1, static.
      coordinates: r >= 1, static; drawn with repetition. Models of no more parameters are read whole.
      left_out: c > 0, traceable: how many are left out for every arbitrary one.

    Returns:
      An `Aggregator` without state; 0 when nobody reports. With f = 1 it makes 2.5 of 1, 2, 3, 4, 100.

    Raises:
      TypeError, ValueError: naming the argument; and, when the messages of a round are seen, n <= 2 f.

    References:
      Shejwalkar and Houmansadr, Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
      Defenses for Federated Learning, NDSS 2021.
    """
    require_faulty(faulty)
    validation.integer("turns", turns, low=1)
    validation.integer("coordinates", coordinates, low=1)
    validation.real("left_out", left_out, low=0.0, low_open=True, scalar=True)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        count = validation.leading_axis("messages", messages)
        require_messages("DnC", faulty, count)
        finite = finite_rows(messages)
        reported = weights > 0
        present = finite & reported
        there = jnp.sum(present, dtype=jnp.int32)
        bears = tolerated(faulty, there)
        most = there - jnp.floor(left_out * bears).astype(jnp.int32)

        def kept(key: Key[Array, ""]) -> Bool[Array, " m"]:
            drawn = _drawn(messages, coordinates, key)
            products, whole, _ = products_between(drawn, present.astype(jnp.float32))
            _, along = worst_direction(products, whole.astype(products.dtype))
            scores = jnp.where(whole, along, jnp.inf)
            return whole & (jnp.argsort(jnp.argsort(scores)) < most)

        every = jnp.all(jax.lax.map(kept, jax.random.split(combining.key, turns)), axis=0)
        metrics = {
            "tolerated": bears.astype(jnp.float32),
            "messages_dropped": jnp.sum(reported & ~finite).astype(jnp.float32),
            "messages_kept": jnp.sum(every).astype(jnp.float32),
        }
        return counted_mean(messages, every.astype(jnp.float32)), state, metrics

    return Aggregator(lambda message: (), apply)


def _drawn(messages: Message, coordinates: int, key: Key[Array, ""]) -> Message:
    """So many numbers of every message, the same ones of all; or all, where there are no more."""
    leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(messages)]
    total = sum(leaf.shape[1] for leaf in leaves)
    if total <= coordinates:
        return messages
    places = jax.random.randint(key, (coordinates,), 0, total)
    drawn = jnp.zeros((len(leaves[0]), coordinates), jnp.result_type(jnp.float32, *leaves))
    start = 0
    for leaf in leaves:
        width = leaf.shape[1]
        here = (places >= start) & (places < start + width)
        # Places in other leaves read anything of this one.
        values = leaf[:, jnp.clip(places - start, 0, width - 1)] if width else drawn
        drawn = jnp.where(here, values.astype(drawn.dtype), drawn)
        start += width
    return drawn
