"""Gaussian noise: on a client's gradients, on what a server combines, and in shares of many clients."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message
from dflax.algorithm import Metrics, Params
from dflax.channel.channel import Channel, Messages, Sending
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.models.averaged import of_weights, with_statistics_of

Deviation = float | Float[Array, ""]


def gaussian(key: Key[Array, ""], like: PyTree[Array], deviation: Deviation) -> PyTree[Array]:
    """Independent N(0, deviation^2) for every number of a tree, in float32 or wider."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, max(len(leaves), 1))

    def of(own: Key[Array, ""], leaf: Any) -> Array:
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        return jnp.asarray(deviation, wide) * jax.random.normal(own, leaf.shape, wide)

    noise = [of(own, leaf) for own, leaf in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(structure, noise)


def added(tree: PyTree[Array], noise: PyTree[Array]) -> PyTree[Array]:
    """The sum in the wider type of the two, in the tree's own type."""
    return jax.tree.map(lambda x, n: (x.astype(n.dtype) + n).astype(x.dtype), tree, noise)


def noisy_gradient(loss: Loss | Oracle, deviation: Deviation) -> Oracle:
    """The oracle of a gradient with noise: `q + N(0, deviation^2)`, new in every local step.

    DP-SGD at a client that trusts nobody is
    `noisy_gradient(clipped_per_example(loss, R, expected=b), z * R / b)`, z the noise multiplier.

    Args:
      loss: a loss, or an `Oracle` without memory.
      deviation: standard deviation >= 0 of every number, in the units of the gradient; traceable.

    Returns:
      An `Oracle`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    oracle = gradient(loss)
    validation.real("deviation", deviation, low=0.0, scalar=True)

    def evaluate(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Params, Metrics]:
        look_key, noise_key = jax.random.split(key)
        seen, metrics = oracle(params, batch, look_key)
        noise = gaussian(noise_key, of_weights(seen), deviation)
        return with_statistics_of(seen, added(seen, noise)), metrics

    return Oracle(evaluate)


def noisy(rule: Aggregator, deviation: Deviation) -> Aggregator:
    """A rule whose result bears Gaussian noise: `rule(messages) + N(0, deviation^2)`.

    For rules whose sensitivity is known from elsewhere. A rule that takes a combination of messages
    found on their products, such as Krum, may change arbitrarily with one message: then no noise helps.

    Args:
      rule: any `Aggregator`.
      deviation: standard deviation >= 0 of every number, in the units of the result; traceable.

    Returns:
      An `Aggregator` with the rule's state and metrics.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("rule", rule, Aggregator, "For example dflax.aggregation.mean().")
    validation.real("deviation", deviation, low=0.0, scalar=True)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        rule_key, noise_key = jax.random.split(combining.key)
        combined, state, metrics = rule.apply(
            messages, weights, state, combining._replace(key=rule_key)
        )
        return added(combined, gaussian(noise_key, combined, deviation)), state, metrics

    return Aggregator(rule.init, apply)


def joint_noise(deviation: Deviation, tolerated: int = 0) -> Channel:
    """Each client's share of noise: the sum of all messages bears N(0, deviation^2), or more.

        sent_i = message_i + N(0, deviation^2 / (m - t))        m clients invited, t = tolerated

    No client knows the sum's noise, and behind secure aggregation (`dflax.privacy`) no one sees a
    single share. The variance of the sum of k messages is `deviation^2 k / (m - t)`: as was meant as
    long as no more than t of m stay out, and less otherwise. The metric `noise_short` is 1 in a round
    with fewer, whose privacy is less than was planned. Clients that collude know their own shares: of
    c of them, count c among the t.

    Args:
      deviation: standard deviation >= 0 of the noise of the sum, in the units of a message; traceable.
      tolerated: t >= 0, how many of the m clients may stay out; static.

    Returns:
      A `Channel` without memory.

    Raises:
      TypeError, ValueError: naming the argument; and, while a step is traced, t >= m.

    References:
      Kairouz, Liu and Steinke, The Distributed Discrete Gaussian Mechanism, arXiv 2102.06387.
    """
    validation.real("deviation", deviation, low=0.0, scalar=True)
    validation.integer("tolerated", tolerated, low=0)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        clients = weights.shape[0]
        if tolerated >= clients:
            raise ValueError(
                f"tolerated must be below the number of clients of a round, {clients}, got {tolerated}."
            )
        share = deviation / jnp.sqrt(jnp.float32(clients - tolerated))
        noise = gaussian(sending.key, messages, share)
        short = jnp.sum(weights > 0) < clients - tolerated
        return added(messages, noise), weights, state, {"noise_short": short.astype(jnp.float32)}

    return Channel(lambda message: (), apply)
