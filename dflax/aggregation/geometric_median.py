"""The geometric median of messages, computed on their products alone."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message, counted_mean
from dflax.aggregation.rows.distances import robust_products
from dflax.algorithm import Metrics

STARTS = ("zero", "mean")


def geometric_median(
    steps: int = 3, smoothing: float = 0.1, *, start: Literal["zero", "mean"] = "zero"
) -> Aggregator:
    """The smoothed geometric median of the messages (RFA): `argmin_z sum_i w_i |z - x_i|`.

    T steps of Weiszfeld's method, norms over all parameters together:

        b_i = w_i / max(|z - x_i|, nu),    z = sum_i b_i x_i / sum_i b_i                  nu = smoothing

    Every z is a combination `sum_i a_i x_i`, so its distances follow from the messages' products G,
    `|z - x_i|^2 = a'Ga - 2 (Ga)_i + G_ii`: messages are read four times whatever T is. G is taken about
    the coordinate-wise median by weight, so that neither a common offset nor outliers cost digits.

    Messages that hold a NaN or an infinity, or whose distance to that median overflows, are left out
    before anything else and their weight with them; the metric `messages_dropped` counts them. Of the
    others, arbitrary messages of less than half of the weight are tolerated: if they hold the share
    a < 1/2 and the rest lies within r of a point, the minimiser lies within 2 (1 - a) / (1 - 2 a) r
    of it.

    Args:
      steps: T >= 1, static. A few steps are not the minimum: from a start z_0 far from the messages
        the result keeps a part of it.
      smoothing: nu > 0, in the units of a message's norm; traceable.
      start: "zero", z_0 = 0, no change of the model; or "mean", which commutes with translations but
        begins where an outlier wants it, so it needs more steps.

    Returns:
      An `Aggregator` without state; 0 when nobody reports. With the default arguments it makes
      (3.788, 4.788, 5.788) of the messages (1, 2, 3), (4, 5, 6), (7, 8, 9), whose median is (4, 5, 6).

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> messages, weights = jnp.array([[1.0], [2.0], [3.0], [4.0], [100.0]]), jnp.ones(5)
      >>> rule = dx.aggregation.geometric_median(steps=20)
      >>> combining = dx.aggregation.Combining(jax.random.key(0))
      >>> combined, *_ = rule.apply(messages, weights, rule.init(messages[0]), combining)
      >>> round(float(combined[0]), 1)
      3.0

    References:
      Pillutla et al., Robust Aggregation for Federated Learning, arXiv 1912.13445.
    """
    validation.integer("steps", steps, low=1)
    validation.real("smoothing", smoothing, low=0.0, low_open=True, scalar=True)
    validation.choice("start", start, STARTS)
    from_zero = start == "zero"

    def init(message: Message) -> tuple[()]:
        return ()

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        count = validation.leading_axis("messages", messages)
        products, finite = robust_products(messages, weights, origin=from_zero)
        finite = jnp.append(finite, True) if from_zero else finite
        whole = finite & jnp.isfinite(jnp.diagonal(products))
        products = jnp.where(whole[:, None] & whole, products, 0)
        norms = jnp.diagonal(products)
        weighs = jnp.where(whole[:count], weights, 0).astype(products.dtype)

        def share(weighs: Float[Array, " m"]) -> Float[Array, " r"]:
            total = weighs.sum()
            shares = weighs / jnp.where(total > 0, total, 1)
            return jnp.append(shares, 0) if from_zero else shares

        def step(number: Array, mix: Float[Array, " r"]) -> Float[Array, " r"]:
            # From the row x_k of the largest share: |z|^2 - 2 <z, x_k> + |x_k|^2 is 0 for all z near it.
            nearest = (jnp.arange(mix.size) == jnp.argmax(mix)).astype(mix.dtype)
            apart = mix - nearest
            both = jnp.stack([apart, nearest], axis=1)
            to = jnp.matmul(products, both, precision=jax.lax.Precision.HIGHEST)
            (apart_to, _), (own, norm) = jnp.matmul(both.T, to, precision=jax.lax.Precision.HIGHEST)
            between = norm + norms - 2 * to[:, 1]
            squared = jnp.maximum(apart_to + 2 * (own - to[:, 0]) + between, 0)[:count]
            return share(weighs / jnp.maximum(jnp.sqrt(squared), smoothing))

        first = jnp.arange(count + 1) == count if from_zero else share(weighs)
        mix = jax.lax.fori_loop(0, steps, step, first.astype(products.dtype))[:count]
        dropped = ~whole[:count] & (weights > 0)
        combined = counted_mean(messages, mix)
        metrics = {"messages_dropped": jnp.sum(dropped).astype(jnp.float32)}
        return combined, state, metrics

    return Aggregator(init, apply)
