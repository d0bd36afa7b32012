"""An audit of a frequency oracle: what its reports themselves say about epsilon."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.participation import Count
from dflax.privacy.local_privacy.oracle import Domain, FrequencyOracle, domain, require_oracle


class Audit(NamedTuple):
    """What an audit found.

    Attributes:
      epsilon: with the confidence asked for, the oracle is not private with less than this.
      likely: the value under which the telling event is likely; d for none of the values.
      unlikely: the value under which it is unlikely.
      event: the two values of the event "the report supports the first and not the second"; d stands
        for "supports no value", in both places for that alone.
      shares: how often the event was seen under `likely` and under `unlikely`.
    """

    epsilon: float
    likely: int
    unlikely: int
    event: tuple[int, int]
    shares: tuple[float, float]


def audited_epsilon(
    key: Key[Array, ""],
    oracle: FrequencyOracle,
    size: int = 4,
    *,
    reports: int = 100_000,
    confidence: float = 0.95,
) -> Audit:
    """A lower bound of an oracle's epsilon from its reports alone; its formulas are not asked.

    Every value of a small domain, and "none of them", reports often. For each pair of values the events
    "the report supports x and not y" and "it supports nothing" are counted; for the oracles here one of
    them is e^epsilon times as likely under one value as under another. Half of the reports choose the
    pair and the event, the other half bound both probabilities after Clopper and Pearson:

        epsilon >= log(lower bound under the one / upper bound under the other).

    A right oracle stays below its epsilon, and comes near it with enough reports; one that leaves users
    out, adds too little noise, or leaves it off for some values does not.

    Args:
      key: typed key.
      oracle: a `FrequencyOracle`.
      size: d >= 2, values of the domain that is tried.
      reports: of each value, >= 100.
      confidence: in (0, 1).

    Returns:
      An `Audit`. Its epsilon is 0 where nothing can be said, infinite never.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    require_oracle("oracle", oracle)
    validation.integer("size", size, low=2, high=64)
    validation.integer("reports", reports, low=100, high=2**24)
    validation.probability("confidence", confidence, low_open=True, high_open=True)
    half = reports // 2
    choosing, judging = (
        np.asarray(_seen(own, oracle, domain(size), Count(half))) for own in jax.random.split(key)
    )
    # A count of one more keeps what was never seen finite.
    gain = np.log((choosing[:, None] + 1.0) / (choosing[None] + 1.0))
    spread = np.sqrt(1 / (choosing[:, None] + 1.0) + 1 / (choosing[None] + 1.0))
    likely, unlikely, x, y = np.unravel_index(np.argmax(gain - 2 * spread), gain.shape)
    counts = judging[[likely, unlikely], x, y]
    tail = (1 - float(confidence)) / 2
    low, high = _at_least(counts[0], half, tail), 1 - _at_least(half - counts[1], half, tail)
    epsilon = max(0.0, float(np.log(low / high))) if low > 0 else 0.0
    shares = float(counts[0]) / half, float(counts[1]) / half
    return Audit(epsilon, int(likely), int(unlikely), (int(x), int(y)), shares)


@functools.partial(jax.jit, static_argnums=(1, 3))
def _seen(
    key: Key[Array, ""], oracle: FrequencyOracle, asked: Domain, reports: Count
) -> Float[Array, "v x y"]:
    """How many reports of each value support x and not y; the last value and the last x are "none"."""
    size = int(asked.padded)

    def of_value(key: Array, value: Array) -> Array:
        values = jnp.full(int(reports), value, jnp.int32)
        supports = oracle.supports(oracle.respond(key, values, asked), asked)
        nothing = ~supports.any(1, keepdims=True)
        yes = jnp.concatenate([supports, nothing], 1).astype(jnp.float32)
        pairs = yes.T @ (1 - yes)
        return pairs.at[size, size].set(nothing.sum(dtype=jnp.float32))

    keys = jax.random.split(key, size + 1)
    return jax.lax.map(lambda own: of_value(*own), (keys, jnp.arange(size + 1)))


def _at_least(count: float, trials: int, tail: float) -> float:
    """The lower end of Clopper and Pearson's interval for a probability."""
    from scipy.special import betaincinv

    return float(betaincinv(count, trials - count + 1, tail)) if count > 0 else 0.0
