"""k-ary randomised response: the value itself, or another by chance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.privacy.local_privacy.oracle import (
    Domain,
    Estimates,
    FrequencyOracle,
    Support,
    chance,
    histogram,
    present_users,
    pure_estimates,
    pure_variance,
    require_epsilon,
    require_values,
)


def k_rr(epsilon: float | Float[Array, ""], *, other: bool = True) -> FrequencyOracle:
    """Generalised randomised response over c answers.

        P(own) = p = e^epsilon / (e^epsilon + c - 1),   P(another) = q = 1 / (e^epsilon + c - 1)

    The c answers are the d values and "other", for users who have none of them: c = d + 1. A report is
    an int32 in [0, d], d for "other". Its variance at frequency 0 is
    (c - 2 + e^epsilon) / (n (e^epsilon - 1)^2): less than that of `oue` where d < 3 e^epsilon + 2.

    Args:
      epsilon: > 0, traceable.
      other: whether "other" is an answer. Without it c = d, and who has none of the values answers any
        of them with the same probability: as private, but then estimates are not quite unbiased.

    Returns:
      A `FrequencyOracle`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Kairouz, Oh and Viswanath, Extremal mechanisms for local differential privacy, arXiv 1407.1338.
      Wang, Blocki, Li and Jha, Locally differentially private protocols for frequency estimation,
      USENIX Security 2017.
    """
    require_epsilon("epsilon", epsilon)
    validation.flag("other", other)
    odds = jnp.exp(jnp.asarray(epsilon, jnp.float32))

    def support(domain: Domain) -> Support:
        others = _others(domain, other)
        return Support(1 / (1 + others / odds), 1 / (odds + others))

    def respond(key: Key[Array, ""], values: Int[Array, " n"], domain: Domain) -> Array:
        values = require_values(values, domain)
        lie_key, which_key, any_key = jax.random.split(key, 3)
        others = _others(domain, other)
        own = jnp.where(domain.holds(values), values, domain.size)
        lies = chance(lie_key, 1 / (1 + odds / others), values.shape)
        drawn = jax.random.randint(which_key, values.shape, 0, jnp.maximum(others, 1))
        answer = jnp.where(lies, drawn + (drawn >= own), own)
        if other:
            return answer
        uniform = jax.random.randint(any_key, values.shape, 0, domain.size)
        return jnp.where(domain.holds(values), answer, uniform)

    def estimate(
        reports: Int[Array, " n"], domain: Domain, present: Bool[Array, " n"] | None = None
    ) -> Estimates:
        counts = histogram(reports, int(domain.padded), present)
        users = present_users(reports, present)
        return pure_estimates(counts, users, domain, support(domain))

    def simulate(
        key: Key[Array, ""],
        values: Int[Array, " n"],
        domain: Domain,
        present: Bool[Array, " n"] | None = None,
    ) -> Estimates:
        return estimate(respond(key, values, domain), domain, present)

    def supports(reports: Int[Array, " n"], domain: Domain) -> Bool[Array, "n D"]:
        return (reports[:, None] == jnp.arange(int(domain.padded))) & domain.valid

    def log_likelihood(
        reports: Int[Array, " n"], values: Int[Array, " n"], domain: Domain
    ) -> Float[Array, " n"]:
        p, q = support(domain)
        holds = domain.holds(values)
        own = jnp.where(holds, values, domain.size)
        known = jnp.where(reports == own, jnp.log(p), jnp.log(q))
        return known if other else jnp.where(holds, known, -jnp.log(domain.size))

    def variance(
        frequency: Float[Array, " D"], users: int | Int[Array, ""], domain: Domain
    ) -> Float[Array, " D"]:
        return pure_variance(frequency, users, support(domain))

    def bits(domain: Domain) -> Float[Array, ""]:
        return jnp.ceil(jnp.log2(_others(domain, other) + 1.0))

    return FrequencyOracle(respond, estimate, simulate, supports, log_likelihood, variance, bits)


def prefers_k_rr(
    epsilon: float | Float[Array, ""], size: int | Int[Array, ""]
) -> Bool[Array, "..."]:
    """Whether `k_rr` over d answers is more exact than `oue` and `olh`: d < 3 e^epsilon + 2.

    Args:
      epsilon: > 0, traceable.
      size: d >= 1, answers.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("epsilon", epsilon, low=0.0, low_open=True)
    validation.real("size", size, low=1)
    return jnp.asarray(size) < 3 * jnp.exp(jnp.asarray(epsilon, jnp.float32)) + 2


def _others(domain: Domain, other: bool) -> Int[Array, ""]:
    """How many answers are not one's own."""
    return domain.size if other else domain.size - 1
