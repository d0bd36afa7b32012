"""Gaussian noise on what a rule makes, and on gradients."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.aggregation import Aggregator, Combining, finite_rows
from dflax.aggregation.aggregator import Message
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss, Oracle, gradient


def noisy(
    rule: Aggregator,
    deviation: float | Float[Array, ""],
    *,
    divided: bool = True,
    joint: bool = False,
) -> Aggregator:
    """A rule with Gaussian noise, drawn once, on the sum that its result is the mean of.

        out = rule(x) + N(0, deviation^2 I) / sum_i w_i            over the messages that count

    Args:
      rule: any `Aggregator`.
      deviation: standard deviation >= 0 of the noise on the sum; traceable.
      divided: False adds the noise undivided, for results that are no means.
      joint: the key of the noise is the sum modulo 2^32 of random words, one from each sender that
        counts. It is uniform if one of them is honest, and stands for noise that nobody knows. Real
        protocols of joint noise need more than this, and some have been broken.

    Returns:
      An `Aggregator` with the rule's state and metrics; 0 when nobody counts.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("rule", rule, Aggregator, "For example norm_bounding(1.0).")
    validation.real("deviation", deviation, low=0.0, scalar=True)
    validation.flag("divided", divided)
    validation.flag("joint", joint)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        rule_key, noise_key = jax.random.split(combining.key)
        out, state, metrics = rule.apply(
            messages, weights, state, combining._replace(key=rule_key)
        )
        counted = jnp.where(finite_rows(messages), weights, 0).astype(jnp.float32)
        total = counted.sum()
        if joint:
            noise_key = _agreed(noise_key, counted > 0)
        scale = jnp.where(total > 0, deviation / jnp.where(total > 0, total, 1), 0)
        noise = gaussian(noise_key, out, scale if divided else jnp.where(total > 0, deviation, 0))
        return jax.tree.map(jnp.add, out, noise), state, metrics

    return Aggregator(rule.init, apply)


def noisy_gradient(loss: Loss | Oracle, deviation: float | Float[Array, ""]) -> Oracle:
    """The oracle of a gradient with noise N(0, deviation^2 I), a client's own: local privacy.

    Args:
      loss: a loss, or an `Oracle`; usually `clipped_per_example`.
      deviation: >= 0, in the units of the gradient; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    oracle = gradient(loss)
    validation.real("deviation", deviation, low=0.0, scalar=True)

    def evaluate(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Params, Metrics]:
        own_key, noise_key = jax.random.split(key)
        seen, metrics = oracle(params, batch, own_key)
        return jax.tree.map(jnp.add, seen, gaussian(noise_key, seen, deviation)), metrics

    return Oracle(evaluate)


def gaussian(
    key: Key[Array, ""], like: PyTree[Array], deviation: float | Float[Array, ""]
) -> PyTree[Array]:
    """Independent N(0, deviation^2) of the shapes and dtypes of a tree."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))

    def draw(own: Array, leaf: Array) -> Array:
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        noise = jax.random.normal(own, leaf.shape, wide)
        return (jnp.asarray(deviation, wide) * noise).astype(leaf.dtype)

    return jax.tree.unflatten(structure, [draw(*one) for one in zip(keys, leaves, strict=True)])


def _agreed(key: Key[Array, ""], counted: Array) -> Key[Array, ""]:
    """A key from the sum of everybody's random words."""
    shape = jax.random.key_data(key).shape
    own = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), shape, jnp.uint32))(
        jnp.arange(len(counted))
    )
    words = jnp.sum(jnp.where(counted[:, None], own, 0), axis=0, dtype=jnp.uint32)
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
