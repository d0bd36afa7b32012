"""Means of clients' changes in which no client counts for more than a bound, with noise on the sum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message, counted_sum
from dflax.aggregation.rows.row_norms import row_norms, scaled_rows, who_counts
from dflax.algorithm import Metrics
from dflax.channel.channel import Channel, Messages, Sending
from dflax.clients import select
from dflax.privacy.noise import added, gaussian

Real = float | Float[Array, ""]


class Cut(NamedTuple):
    """Messages of a cohort as a private mean sees them.

    Attributes:
      norms: `[m]`, 0 of those that do not count.
      counts: `[m]` who reported finite numbers.
      factors: `[m]` by which each is shortened, 0 of those that do not count.
      metrics: "clipped", the share of those that count that were cut; "messages_dropped".
    """

    norms: Float[Array, " m"]
    counts: Bool[Array, " m"]
    factors: Float[Array, " m"]
    metrics: Metrics


def cut(messages: Message, weights: Float[Array, " m"], norm: Real) -> Cut:
    """By what each message is shortened to the length `norm`."""
    counts, dropped = who_counts(messages, weights)
    norms = jnp.where(counts, row_norms(messages, present=counts), 0)
    longer = norms > norm
    factors = jnp.where(longer, norm / jnp.where(longer, norms, 1), 1)
    share = jnp.sum(longer) / jnp.maximum(jnp.sum(counts), 1)
    metrics = {"clipped": share.astype(jnp.float32), "messages_dropped": dropped}
    return Cut(norms, counts, jnp.where(counts, factors, 0).astype(norms.dtype), metrics)


def clipped_updates(norm: Real) -> Channel:
    """Every client cuts its own message to the length R: `x_i min(1, R / |x_i|)`, R = norm.

    Norms are over all parameters. In place of a message with a NaN or an infinity 0 is sent. Metrics:
    "clipped", the share of the reporting clients' messages that was cut, and "not_finite", how many
    became 0. The private means of this package cut by themselves; this is for what is in front of
    `joint_noise`, secure aggregation and rules of your own.

    Args:
      norm: R > 0, in the units of a message's norm; traceable.

    Returns:
      A `Channel` without memory.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("norm", norm, low=0.0, low_open=True, scalar=True)

    def apply(
        messages: Messages, weights: Float[Array, " m"], state: tuple[()], sending: Sending
    ) -> tuple[Messages, Float[Array, " m"], tuple[()], Metrics]:
        found = cut(messages, weights, norm)
        nothing = jax.tree.map(jnp.zeros_like, messages)
        sent = scaled_rows(select(found.counts, messages, nothing), found.factors)
        metrics = {
            "clipped": found.metrics["clipped"],
            "not_finite": found.metrics["messages_dropped"],
        }
        return sent, weights, state, metrics

    return Channel(lambda message: (), apply)


def private_mean(norm: Real, noise_multiplier: Real, expected: Real) -> Aggregator:
    """The mean of clipped changes with Gaussian noise on the sum (DP-FedAvg).

        out = (sum_i x_i min(1, R / |x_i|) + N(0, (z R)^2)) / n            R = norm, n = expected

    Every client that reports counts once, whatever its weight: adding or removing one moves the sum by
    R at most. n is fixed beforehand: the number of clients that are expected to report, not of those
    that do. A change with a NaN or an infinity counts as 0. Metrics: "clipped", the share of the changes
    that was cut, and "messages_dropped", those that were not finite. A round in which no message arrives
    leaves the server as it was, without noise, which tells that nobody was there: `clients_plan` adds
    the probability to its delta.

    Args:
      norm: R > 0, in the units of a change's norm; traceable.
      noise_multiplier: z >= 0; traceable.
      expected: n > 0; traceable.

    Returns:
      An `Aggregator` without state.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> rule = dx.privacy.private_mean(norm=5.0, noise_multiplier=0.0, expected=2)
      >>> messages = jnp.array([[6.0, 8.0], [1.0, 0.0]])
      >>> combining = dx.aggregation.Combining(jax.random.key(0))
      >>> combined, _, metrics = rule.apply(messages, jnp.ones(2), rule.init(messages[0]), combining)
      >>> combined.round(2).tolist(), float(metrics["clipped"])
      ([2.0, 2.0], 0.5)

    References:
      McMahan et al., Learning Differentially Private Recurrent Language Models, arXiv 1710.06963.
    """
    check(norm, noise_multiplier, expected)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        found = cut(messages, weights, norm)
        total = counted_sum(messages, found.factors)
        noise = gaussian(combining.key, total, noise_multiplier * norm)
        return divided(added(total, noise), expected), state, found.metrics

    return Aggregator(lambda message: (), apply)


def adaptive_private_mean(
    quantile: Real,
    noise_multiplier: Real,
    expected: Real,
    *,
    count_deviation: Real,
    start: Real = 0.1,
    rate: Real = 0.2,
) -> Aggregator:
    """`private_mean` whose clip C follows a quantile of the changes' lengths.

        out = (sum_i x_i min(1, C / |x_i|) + N(0, (z' C)^2)) / n
        b   = 1/2 + (sum_i (1[|x_i| <= C] - 1/2) + N(0, s^2)) / n              s = count_deviation
        C   = C exp(-rate (b - quantile))
        z'  = (z^-2 - (2 s)^-2)^(-1/2)

    The two noisy sums of a round are together one Gaussian mechanism of multiplier z, so the accountant
    is given z, and the count costs nothing beside it. Metrics beside those of `private_mean`: "clip", C
    of the round.

    Args:
      quantile: in (0, 1) of the clients' lengths that C goes to; 0.5 is the median; traceable.
      noise_multiplier: z >= 0, below 2 s; traceable.
      expected: n > 0 clients; traceable.
      count_deviation: s > 0; n / 20 in the paper; traceable.
      start: C > 0 of the first round; traceable.
      rate: > 0; traceable.

    Returns:
      An `Aggregator` whose state is C.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Andrew et al., Differentially Private Learning with Adaptive Clipping, arXiv 1905.03871.
    """
    validation.probability("quantile", quantile, low_open=True, high_open=True)
    check(start, noise_multiplier, expected, name="start")
    for name, value in (("count_deviation", count_deviation), ("rate", rate)):
        validation.real(name, value, low=0.0, low_open=True, scalar=True)
    known = not any(map(validation.is_traced, (noise_multiplier, count_deviation)))
    if known and float(noise_multiplier) >= 2 * float(count_deviation):
        raise ValueError(
            f"count_deviation must be above noise_multiplier / 2 = {float(noise_multiplier) / 2:g}, for "
            f"the count alone to spend less than the whole, got {float(count_deviation):g}."
        )

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Array, combining: Combining
    ) -> tuple[Message, Array, Metrics]:
        sum_key, count_key = jax.random.split(combining.key)
        found = cut(messages, weights, state)
        left = 1 - jnp.square(noise_multiplier / (2 * jnp.asarray(count_deviation)))
        total = counted_sum(messages, found.factors)
        noise = gaussian(sum_key, total, noise_multiplier * state / jnp.sqrt(left))
        short = jnp.sum(jnp.where(found.counts, (found.norms <= state) - 0.5, 0))
        noisy = short + count_deviation * jax.random.normal(count_key, (), short.dtype)
        share = 0.5 + noisy / expected
        after = (state * jnp.exp(-rate * (share - quantile))).astype(state.dtype)
        out = divided(added(total, noise), expected)
        return out, after, {**found.metrics, "clip": state}

    return Aggregator(lambda message: jnp.asarray(start, jnp.float32), apply)


def check(norm: Any, noise_multiplier: Any, expected: Any, *, name: str = "norm") -> None:
    """Refuse what no private mean can be made with."""
    validation.real(name, norm, low=0.0, low_open=True, scalar=True)
    validation.real("noise_multiplier", noise_multiplier, low=0.0, scalar=True)
    validation.real("expected", expected, low=0.0, low_open=True, scalar=True)


def divided(total: Message, expected: Real) -> Message:
    """The sum over a number that was fixed beforehand."""

    def of(leaf: Array) -> Array:
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return (wide / jnp.asarray(expected, wide.dtype)).astype(leaf.dtype)

    return jax.tree.map(of, total)
