"""Local hashing: randomised response on a hash of the value, of a function drawn by the user."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from dflax import counter, validation
from dflax.privacy.local_privacy.oracle import (
    Domain,
    Estimates,
    FrequencyOracle,
    Support,
    chance,
    in_chunks,
    over_users,
    present_users,
    pure_estimates,
    pure_variance,
    require_epsilon,
    require_values,
)

MOST_BUCKETS = 2**30


class Hashed(NamedTuple):
    """Reports of local hashing.

    Attributes:
      seed: `[n]` uint32, which function each user drew.
      bucket: `[n]` int32 in [0, G), the answer.
    """

    seed: UInt32[Array, " n"]
    bucket: Int[Array, " n"]


def olh(epsilon: float | Float[Array, ""], *, buckets: int | None = None) -> FrequencyOracle:
    """Optimised local hashing: a user draws a hash function H into G buckets and answers a bucket.

        P(H(v)) = p = e^epsilon / (e^epsilon + G - 1),   a report supports {x: H(x) = bucket},   q = 1/G

    G = round(e^epsilon) + 1 is the most exact, about as exact as `oue`; G = 2 is binary local hashing.
    Who has none of the values hashes a value of its own. The seed is drawn before the value is looked
    at, so that telling it tells nothing. H is a mix of 32 bits of seed and value.

    Counting takes n D hashes, some users at a time.

    Args:
      epsilon: > 0, traceable.
      buckets: G in [2, 2^30]; None for the most exact.

    Returns:
      A `FrequencyOracle` of `Hashed` reports.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Wang, Blocki, Li and Jha, USENIX Security 2017.
    """
    require_epsilon("epsilon", epsilon)
    if buckets is not None:
        validation.integer("buckets", buckets, low=2, high=MOST_BUCKETS)
    odds = jnp.exp(jnp.asarray(epsilon, jnp.float32))
    best = jnp.round(jnp.minimum(odds, MOST_BUCKETS - 1.0)) + 1
    among = (best if buckets is None else jnp.float32(buckets)).astype(jnp.int32)
    support = Support(1 / (1 + (among - 1) / odds), 1 / among)

    def respond(key: Key[Array, ""], values: Int[Array, " n"], domain: Domain) -> Hashed:
        values = require_values(values, domain)
        seed_key, lie_key, which_key = jax.random.split(key, 3)
        seed = jax.random.bits(seed_key, values.shape, jnp.uint32)
        own = _bucket(seed, _hashed_value(values, domain), among)
        lies = chance(lie_key, 1 / (1 + odds / (among - 1)), values.shape)
        drawn = jax.random.randint(which_key, values.shape, 0, among - 1)
        return Hashed(seed, jnp.where(lies, drawn + (drawn >= own), own))

    def estimate(
        reports: Hashed, domain: Domain, present: Bool[Array, " n"] | None = None
    ) -> Estimates:
        shown = jnp.ones(reports.seed.shape, bool) if present is None else present

        def count(seed: Array, bucket: Array, shown: Array) -> Array:
            agrees = supports(Hashed(seed, bucket), domain) & shown[:, None]
            return jnp.sum(agrees, 0, dtype=jnp.int32)

        def count_here(*rows: Array) -> Array:
            return in_chunks(count, int(domain.padded), *rows)

        counts = over_users(count_here, reports.seed, reports.bucket, shown)
        return pure_estimates(counts, present_users(reports.seed, present), domain, support)

    def simulate(
        key: Key[Array, ""],
        values: Int[Array, " n"],
        domain: Domain,
        present: Bool[Array, " n"] | None = None,
    ) -> Estimates:
        return estimate(respond(key, values, domain), domain, present)

    def supports(reports: Hashed, domain: Domain) -> Bool[Array, "n D"]:
        own = _bucket(reports.seed[:, None], jnp.arange(int(domain.padded)), among)
        return (own == reports.bucket[:, None]) & domain.valid

    def log_likelihood(
        reports: Hashed, values: Int[Array, " n"], domain: Domain
    ) -> Float[Array, " n"]:
        own = _bucket(reports.seed, _hashed_value(values, domain), among)
        lie = -jnp.log(odds + among - 1)
        return jnp.where(reports.bucket == own, jnp.log(support.own), lie)

    def variance(
        frequency: Float[Array, " D"], users: int | Int[Array, ""], domain: Domain
    ) -> Float[Array, " D"]:
        return pure_variance(frequency, users, support)

    def bits(domain: Domain) -> Float[Array, ""]:
        return 32 + jnp.ceil(jnp.log2(among.astype(jnp.float32)))

    return FrequencyOracle(respond, estimate, simulate, supports, log_likelihood, variance, bits)


def _hashed_value(values: Int[Array, " n"], domain: Domain) -> Int[Array, " n"]:
    """What is hashed: the value, or one that nobody asks about."""
    return jnp.where(domain.holds(values), values, int(domain.padded))


def _bucket(
    seed: UInt32[Array, "..."], value: Int[Array, "..."], among: Int[Array, ""]
) -> Int[Array, "..."]:
    word = counter.mix(counter.mix(value.astype(jnp.uint32) + jnp.uint32(0x9E3779B9)) ^ seed)
    return (counter.mix(word + seed) % among.astype(jnp.uint32)).astype(jnp.int32)
