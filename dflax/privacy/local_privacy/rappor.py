"""RAPPOR: a permanent answer that is kept, and a fresh answer about it every time."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.privacy.local_privacy.oracle import (
    Domain,
    Estimates,
    Support,
    chance,
    over_users,
    present_users,
    pure_estimates,
    pure_variance,
    require_epsilon,
    require_values,
)
from dflax.privacy.local_privacy.unary import bit_counts, one_hot


class LongitudinalOracle(NamedTuple):
    """A protocol for users who report time and again.

    Attributes:
      init: `init(key, users) -> memory`, `[n]` typed keys, a secret of each user. All permanent answers
        of a user follow from it and the value, so that nothing of length d is stored.
      respond: `respond(key, memory, values, domain) -> reports` `[n, D]` bool, those of one time.
      estimate: `estimate(reports, domain, present=None) -> Estimates` from the reports of one time.
      simulate: `simulate(key, memory, values, domain, present=None) -> Estimates`: the same as
        `estimate` of `respond`, some users at a time.
      variance: `variance(frequency, users, domain) -> [D]` of the estimates of one time. Means over
        times keep what the permanent answers have of it.
      budget: `[2]` epsilon of any number of reports about one value, and of the first report.
    """

    init: Callable[..., Key[Array, " n"]]
    respond: Callable[..., Bool[Array, "n D"]]
    estimate: Callable[..., Estimates]
    simulate: Callable[..., Estimates]
    variance: Callable[..., Float[Array, " D"]]
    budget: Float[Array, "2"]


def rappor(
    permanent: float | Float[Array, ""], first: float | Float[Array, ""]
) -> LongitudinalOracle:
    """RAPPOR with one bit a value: a unary encoding is flipped once for good, and again at every report.

        permanent:      P(B = 1) = p1 for one's own value, 1 - p1 for another
        instantaneous:  P(S = 1) = p2 where B = 1, 1 - p2 where B = 0
        permanent epsilon = 2 log(p1 / (1 - p1)),   first epsilon = 2 log(r / (1 - r)),
        r = p1 p2 + (1 - p1) (1 - p2)

    In RAPPOR's own letters p1 = 1 - f/2, q = p2 and p = 1 - p2; `rappor_budgets` has the general form.

    However often a user reports about one value, nobody learns more than the permanent answer, which
    is private with the permanent epsilon. For a value that changes every new value costs it again:
    after c different values the budget spent is c times that.

    Args:
      permanent: epsilon of all reports about one value together, > 0, traceable.
      first: epsilon of a single report, in (0, permanent), traceable.

    Returns:
      A `LongitudinalOracle`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Erlingsson, Pihur and Korolova, RAPPOR, arXiv 1407.6981.
      Arcolezi, Couchot, Al Bouna and Xiao, Improving the utility of locally differentially private
      protocols for longitudinal and multidimensional frequency estimates, arXiv 2111.04636.
    """
    require_epsilon("permanent", permanent)
    require_epsilon("first", first)
    known = not (validation.is_traced(permanent) or validation.is_traced(first))
    if known and not float(first) < float(permanent):
        raise ValueError(
            f"first must be below permanent = {float(permanent):g}, got {float(first):g}. With both "
            "the same no fresh noise is left: use dflax.privacy.local_privacy.sue."
        )
    inner, whole = (
        jax.nn.sigmoid(jnp.asarray(epsilon, jnp.float32) / 2) for epsilon in (permanent, first)
    )
    fresh = (whole - (1 - inner)) / (2 * inner - 1)
    support = Support(whole, 1 - whole)

    def init(key: Key[Array, ""], users: int) -> Key[Array, " n"]:
        validation.typed_key("key", key)
        validation.integer("users", users, low=1)
        return jax.random.split(key, users)

    def respond(
        key: Key[Array, ""], memory: Key[Array, " n"], values: Int[Array, " n"], domain: Domain
    ) -> Bool[Array, "n D"]:
        values = require_values(values, domain)
        return _answers(jax.random.split(key, values.shape[0]), memory, values, domain)

    def _answers(keys: Array, memory: Array, values: Array, domain: Domain) -> Array:
        length = int(domain.padded)
        # Users without any of the values share one permanent answer, whatever else they have.
        label = jnp.where(domain.holds(values), values, length)
        own = one_hot(values, domain)

        def answer(key: Array, secret: Array, label: Array, own: Array) -> Array:
            flipped = chance(jax.random.fold_in(secret, label), 1 - inner, (length,))
            again = chance(key, 1 - fresh, (length,))
            return own ^ flipped ^ again

        return jax.vmap(answer)(keys, memory, label, own) & domain.valid

    def estimate(
        reports: Bool[Array, "n D"], domain: Domain, present: Bool[Array, " n"] | None = None
    ) -> Estimates:
        shown = reports if present is None else reports & present[:, None]
        counts = over_users(lambda rows: jnp.sum(rows, 0, dtype=jnp.int32), shown)
        return pure_estimates(counts, present_users(reports, present), domain, support)

    def simulate(
        key: Key[Array, ""],
        memory: Key[Array, " n"],
        values: Int[Array, " n"],
        domain: Domain,
        present: Bool[Array, " n"] | None = None,
    ) -> Estimates:
        values = require_values(values, domain)
        shown = jnp.ones(values.shape, bool) if present is None else present
        # Keys travel as numbers: rows of chunks are padded.
        words = [
            jax.random.key_data(keys) for keys in (jax.random.split(key, values.shape[0]), memory)
        ]
        kind = jax.random.key_impl(key)

        def some(fresh_words: Array, memory_words: Array, values: Array) -> Array:
            fresh_keys = jax.random.wrap_key_data(fresh_words, impl=kind)
            memory = jax.random.wrap_key_data(memory_words, impl=kind)
            return _answers(fresh_keys, memory, values, domain)

        counts = bit_counts(some, domain, shown, *words, values)
        return pure_estimates(counts, present_users(values, present), domain, support)

    def variance(
        frequency: Float[Array, " D"], users: int | Int[Array, ""], domain: Domain
    ) -> Float[Array, " D"]:
        return pure_variance(frequency, users, support)

    budget = jnp.stack([jnp.asarray(one, jnp.float32) for one in (permanent, first)])
    return LongitudinalOracle(init, respond, estimate, simulate, variance, budget)


def rappor_budgets(
    f: float | Float[Array, ""],
    p: float | Float[Array, ""],
    q: float | Float[Array, ""],
    hashes: int = 1,
) -> Float[Array, "2"]:
    """Permanent and first epsilon of RAPPOR with its own parameters.

        permanent = 2 h log((1 - f/2) / (f/2)),   first = h log(q* (1 - p*) / (p* (1 - q*))),
        q* = f (p + q) / 2 + (1 - f) q,   p* = f (p + q) / 2 + (1 - f) p

    Args:
      f: longitudinal noise in (0, 1]: with probability f a permanent bit is a fair coin.
      p: probability of reporting 1 where the permanent bit is 0, in (0, 1).
      q: the same where it is 1, in (0, 1), at least p.
      hashes: h >= 1 bits of a Bloom filter that a value sets; a unary encoding sets one.

    Returns:
      `[2]`: permanent, first.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Erlingsson, Pihur and Korolova, RAPPOR, arXiv 1407.6981, theorems 1 and 2.
    """
    validation.probability("f", f, low_open=True)
    validation.probability("p", p, low_open=True, high_open=True)
    validation.probability("q", q, low_open=True, high_open=True)
    if not (validation.is_traced(p) or validation.is_traced(q)) and float(q) < float(p):
        raise ValueError(f"q must be at least p = {float(p):g}, got {float(q):g}. Swap the two.")
    validation.integer("hashes", hashes, low=1)
    f, p, q = (jnp.asarray(one, jnp.float32) for one in (f, p, q))
    one = f * (p + q) / 2 + (1 - f) * q
    zero = f * (p + q) / 2 + (1 - f) * p
    permanent = 2 * hashes * jnp.log((1 - f / 2) / (f / 2))
    return jnp.stack([permanent, hashes * jnp.log(one * (1 - zero) / (zero * (1 - one)))])
