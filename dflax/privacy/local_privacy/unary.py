"""Unary encodings: a bit for every value, each flipped by chance."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax.privacy.local_privacy.binomial import binomial
from dflax.privacy.local_privacy.oracle import (
    Domain,
    Estimates,
    FrequencyOracle,
    Support,
    chance,
    histogram,
    in_chunks,
    over_users,
    present_users,
    pure_estimates,
    pure_variance,
    require_epsilon,
    require_values,
)


def oue(epsilon: float | Float[Array, ""]) -> FrequencyOracle:
    """Optimised unary encoding: a report is D bits.

        P(1) = p = 1/2 for one's own value,   P(1) = q = 1 / (e^epsilon + 1) for every other

    Who has none of the values has no bit of its own. Two values differ in two bits, whose odds give
    p (1 - q) / ((1 - p) q) = e^epsilon. The variance at frequency 0 does not grow with d, it is
    4 e^epsilon / (n (e^epsilon - 1)^2); a report of d bits does. Without privacy, at epsilon infinite,
    one's own bit is still a fair coin, and a frequency f keeps the variance f / n.

    `simulate` draws the counts themselves, Binomial(n_v, p) + Binomial(n - n_v, q), and is as fast for
    thousands of values as for ten.

    Args:
      epsilon: > 0, traceable.

    Returns:
      A `FrequencyOracle`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Wang, Blocki, Li and Jha, USENIX Security 2017.
    """
    require_epsilon("epsilon", epsilon)
    odds = jnp.exp(jnp.asarray(epsilon, jnp.float32))
    return unary(Support(jnp.float32(0.5), 1 / (odds + 1)))


def sue(epsilon: float | Float[Array, ""]) -> FrequencyOracle:
    """Symmetric unary encoding, the one-time answer of RAPPOR: `oue` with other probabilities.

        p = e^(epsilon/2) / (e^(epsilon/2) + 1),   q = 1 - p

    Args:
      epsilon: > 0, traceable.

    Returns:
      A `FrequencyOracle`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Erlingsson, Pihur and Korolova, RAPPOR, arXiv 1407.6981.
    """
    require_epsilon("epsilon", epsilon)
    half = jnp.asarray(epsilon, jnp.float32) / 2
    return unary(Support(1 / (1 + jnp.exp(-half)), 1 / (1 + jnp.exp(half))))


def unary(support: Support) -> FrequencyOracle:
    """The oracle of d bits with these probabilities of a 1."""
    p, q = support

    def respond(key: Key[Array, ""], values: Int[Array, " n"], domain: Domain) -> Array:
        values = require_values(values, domain)
        own = one_hot(values, domain)
        own_key, other_key = jax.random.split(key)
        # One draw a user for its own bit, one for each of the others.
        kept = chance(own_key, p, values.shape)
        set_ = chance(other_key, q, own.shape)
        return jnp.where(own, kept[:, None], set_) & domain.valid

    def estimate(
        reports: Bool[Array, "n D"], domain: Domain, present: Bool[Array, " n"] | None = None
    ) -> Estimates:
        shown = reports if present is None else reports & present[:, None]
        counts = over_users(lambda rows: jnp.sum(rows, 0, dtype=jnp.int32), shown)
        return pure_estimates(counts, present_users(reports, present), domain, support)

    def simulate(
        key: Key[Array, ""],
        values: Int[Array, " n"],
        domain: Domain,
        present: Bool[Array, " n"] | None = None,
    ) -> Estimates:
        values = require_values(values, domain)
        users = present_users(values, present)
        true = jnp.where(domain.valid, histogram(values, int(domain.padded), present), 0)
        own_key, other_key = jax.random.split(key)
        counts = binomial(own_key, true, p) + binomial(other_key, users - true, q)
        return pure_estimates(counts, users, domain, support)

    def supports(reports: Bool[Array, "n D"], domain: Domain) -> Bool[Array, "n D"]:
        return reports & domain.valid

    def log_likelihood(
        reports: Bool[Array, "n D"], values: Int[Array, " n"], domain: Domain
    ) -> Float[Array, " n"]:
        p_one = jnp.where(one_hot(values, domain), p, q)
        each = jnp.where(reports, jnp.log(p_one), jnp.log1p(-p_one))
        return jnp.sum(jnp.where(domain.valid, each, 0.0), axis=1)

    def variance(
        frequency: Float[Array, " D"], users: int | Int[Array, ""], domain: Domain
    ) -> Float[Array, " D"]:
        return pure_variance(frequency, users, support)

    def bits(domain: Domain) -> Float[Array, ""]:
        return domain.size.astype(jnp.float32)

    return FrequencyOracle(respond, estimate, simulate, supports, log_likelihood, variance, bits)


def one_hot(values: Int[Array, " n"], domain: Domain) -> Bool[Array, "n D"]:
    """Each user's own bit; none for a value outside of the domain."""
    return (values[:, None] == jnp.arange(int(domain.padded))) & domain.valid


def bit_counts(
    respond: Callable[..., Bool[Array, "n D"]],
    domain: Domain,
    present: Bool[Array, " n"],
    *rows: Array,
) -> Int[Array, " D"]:
    """How many users set each bit, `respond(*rows)` of some users at a time."""

    def count(*some: Array) -> Array:
        *own, here = some
        return jnp.sum(respond(*own) & here[:, None], 0, dtype=jnp.int32)

    def count_here(*rows: Array) -> Array:
        return in_chunks(count, int(domain.padded), *rows)

    return over_users(count_here, *rows, present)
