"""Noise on the sum that a rule's result is the mean of."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.aggregation import Aggregator, Combining, finite_rows
from dflax.aggregation.aggregator import Message
from dflax.algorithm import Metrics
from dflax.privacy.noise import added, gaussian


def noisy_mean(
    rule: Aggregator, deviation: float | Float[Array, ""], *, joint: bool = False
) -> Aggregator:
    """A rule that is a mean, with Gaussian noise drawn once on the sum.

        out = rule(x) + N(0, deviation^2 I) / sum_i w_i                over the messages that count

    `noisy` adds the noise as it is; `private_mean` divides by a number that is fixed beforehand, which
    it must be where it is private who takes part. Here the sum of the weights is divided by, as in
    methods whose unit of privacy is a record: who takes part is public there. A message with a NaN or
    an infinity does not count.

    Args:
      rule: any `Aggregator`.
      deviation: standard deviation >= 0 of the noise on the sum; traceable.
      joint: the key of the noise is the sum modulo 2^32 of random words, one from each sender that
        counts. It is uniform if one of them is honest, and stands for noise that nobody knows. A real
        protocol of joint noise needs more than this, and some have been broken.

    Returns:
      An `Aggregator` with the rule's state and metrics; 0 when nobody counts.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("rule", rule, Aggregator, "For example norm_bounding(1.0).")
    validation.real("deviation", deviation, low=0.0, scalar=True)
    validation.flag("joint", joint)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        rule_key, noise_key = jax.random.split(combining.key)
        out, state, metrics = rule.apply(messages, weights, state, combining._replace(key=rule_key))
        counted = jnp.where(finite_rows(messages), weights, 0).astype(jnp.float32)
        total = counted.sum()
        if joint:
            noise_key = _agreed(noise_key, counted > 0)
        scale = jnp.where(total > 0, deviation / jnp.where(total > 0, total, 1), 0)
        return added(out, gaussian(noise_key, out, scale)), state, metrics

    return Aggregator(rule.init, apply)


def _agreed(key: Key[Array, ""], counted: Bool[Array, " m"]) -> Key[Array, ""]:
    """A key from the sum of everybody's random words."""
    shape = jax.random.key_data(key).shape
    own = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), shape, jnp.uint32))(
        jnp.arange(len(counted))
    )
    words = jnp.sum(jnp.where(counted[:, None], own, 0), axis=0, dtype=jnp.uint32)
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
