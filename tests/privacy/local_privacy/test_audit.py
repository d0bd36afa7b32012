"""The audit passes right oracles, comes near their epsilon, and catches broken ones."""

import jax
import jax.numpy as jnp
import pytest

from dflax.privacy import local_privacy as lp

KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ("oracle", "epsilon"),
    [
        (lp.k_rr(1.0), 1.0),
        (lp.oue(2.0), 2.0),
        pytest.param(lp.olh(1.0), 1.0, marks=pytest.mark.slow),
        pytest.param(lp.hadamard_response(2.0, blocks=2), 2.0, marks=pytest.mark.slow),
    ],
    ids=["k_rr", "oue", "olh", "hadamard"],
)
def test_right_oracles_stay_below_their_epsilon_and_come_near(oracle, epsilon):
    found = lp.audited_epsilon(KEY, oracle, 3, reports=40_000, confidence=0.99)
    assert 0.8 * epsilon < found.epsilon <= epsilon


def drops_outsiders(oracle, nothing):
    """As two published codes do: who has none of the values sends nothing."""

    def respond(key, values, domain):
        reports = oracle.respond(key, values, domain)
        inside = domain.holds(values)
        return jnp.where(inside.reshape(-1, *[1] * (reports.ndim - 1)), reports, nothing)

    return oracle._replace(respond=respond)


def half_the_noise(oracle):
    """Every second user, by chance, answers the truth."""

    def respond(key, values, domain):
        noisy = oracle.respond(key, values, domain)
        honest = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5, values.shape)
        return jnp.where(honest, jnp.where(domain.holds(values), values, domain.size), noisy)

    return oracle._replace(respond=respond)


@pytest.mark.parametrize(
    ("broken", "epsilon"),
    [
        (drops_outsiders(lp.k_rr(1.0, other=False), -1), 1.0),
        (drops_outsiders(lp.oue(3.0), False), 3.0),
        (half_the_noise(lp.k_rr(1.0)), 1.0),
    ],
    ids=["k_rr that drops", "oue that drops", "k_rr that tells the truth"],
)
def test_broken_oracles_are_caught(broken, epsilon):
    found = lp.audited_epsilon(KEY, broken, 3, reports=40_000, confidence=0.99)
    assert found.epsilon > 1.2 * epsilon


def test_who_drops_outsiders_is_caught_by_them():
    broken = drops_outsiders(lp.k_rr(1.0, other=False), -1)
    found = lp.audited_epsilon(KEY, broken, 3, reports=40_000)
    assert (found.likely, found.event[0]) == (3, 3)
    assert found.shares == (1.0, 0.0)
    assert found.epsilon > 8


def test_the_bound_is_that_of_clopper_and_pearson():
    from scipy.stats import beta

    found = lp.audited_epsilon(KEY, lp.k_rr(1.0), 3, reports=2000, confidence=0.9)
    low, high = (round(share * 1000) for share in found.shares)
    lower = beta.ppf(0.05, low, 1000 - low + 1)
    upper = beta.ppf(0.95, high + 1, 1000 - high)
    assert found.epsilon == pytest.approx(float(jnp.log(lower / upper)), rel=1e-4)
