"""RAPPOR: permanent answers stay, fresh ones do not, and budgets are what they are said to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.privacy import local_privacy as lp

KEY = jax.random.key(0)
DOMAIN = lp.domain(5, 8)


def keep_probabilities(permanent, first):
    inner, whole = (1 / (1 + np.exp(-epsilon / 2)) for epsilon in (permanent, first))
    return inner, (whole - 1 + inner) / (2 * inner - 1)


def test_budgets_of_rappors_own_parameters():
    inner, fresh = keep_probabilities(2.0, 1.0)
    found = lp.rappor_budgets(2 * (1 - inner), 1 - fresh, fresh)
    np.testing.assert_allclose(found, [2, 1], rtol=1e-5)
    np.testing.assert_allclose(lp.rappor(2.0, 1.0).budget, [2, 1])
    # The paper's setting f = 1/2, p = 1/2, q = 3/4, two hash functions: 4 ln 3 and about 1.07.
    np.testing.assert_allclose(
        lp.rappor_budgets(0.5, 0.5, 0.75, hashes=2), [4 * np.log(3), 1.0743], rtol=1e-3
    )


def test_estimates_of_one_time_are_unbiased_and_as_exact_as_said():
    values = jnp.asarray(np.random.default_rng(0).choice(7, 300) - 1)
    true = np.array([(np.asarray(values) == value).mean() for value in range(5)])
    oracle = lp.rappor(2.0, 1.0)

    def one(key):
        memory = oracle.init(jax.random.fold_in(key, 1), 300)
        return oracle.simulate(key, memory, values, DOMAIN).frequency

    found = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, 1000)), np.float64)
    variance = np.asarray(oracle.variance(jnp.asarray(np.pad(true, (0, 3))), 300, DOMAIN))[:5]
    assert np.all(np.abs(found[:, :5].mean(0) - true) < 4 * np.sqrt(variance / 1000))
    np.testing.assert_allclose(found[:, :5].var(0), variance, rtol=0.2)
    assert not found[:, 5:].any()


def test_all_reports_about_a_value_tell_the_permanent_answer_and_no_more():
    """The mean of 200 reports is p2 or 1 - p2 by the permanent bits, of which p1 are one's own."""
    users, oracle = 1000, lp.rappor(1.0, 0.9)
    memory = oracle.init(KEY, users)
    values = jnp.arange(users) % 5
    respond = jax.jit(
        lambda keys, values: jax.lax.map(
            lambda key: oracle.respond(key, memory, values, DOMAIN).astype(jnp.float32), keys
        ).mean(0)
    )
    inner, fresh = keep_probabilities(1.0, 0.9)
    mean = np.asarray(respond(jax.random.split(KEY, 200), values))[:, :5]
    permanent = mean > 0.5
    nearest = np.where(permanent, fresh, 1 - fresh)
    assert np.abs(mean - nearest).max() < 6 * np.sqrt(fresh * (1 - fresh) / 200)
    own = np.arange(5) == np.asarray(values)[:, None]
    agrees = (permanent == own).mean()
    assert agrees == pytest.approx(inner, abs=4 * np.sqrt(inner * (1 - inner) / own.size))
    # Another value has a permanent answer of its own, and coming back to the first finds the old one.
    other = np.asarray(respond(jax.random.split(KEY, 200), values + 1))[:, :5] > 0.5
    own_other = np.arange(5) == (np.asarray(values) + 1)[:, None]
    flips, flips_other = permanent ^ own, other ^ own_other
    correlation = np.corrcoef(flips.ravel(), flips_other.ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(own.size)
    again = np.asarray(respond(jax.random.split(jax.random.key(1), 200), values))[:, :5] > 0.5
    np.testing.assert_array_equal(again, permanent)


@pytest.mark.slow
def test_counts_are_those_of_the_reports():
    oracle = lp.rappor(2.0, 1.0)
    memory, values = oracle.init(KEY, 100), jnp.arange(100) % 7 - 1
    present = jnp.arange(100) % 3 > 0
    literal = oracle.estimate(oracle.respond(KEY, memory, values, DOMAIN), DOMAIN, present)
    found = jax.jit(lambda key: oracle.simulate(key, memory, values, DOMAIN, present))(KEY)
    np.testing.assert_array_equal(found.counts, literal.counts)
    np.testing.assert_allclose(found.frequency, literal.frequency, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("permanent", "first", "named"),
    [(1.0, 1.0, "first"), (1.0, 2.0, "first"), (0.0, 1.0, "permanent"), (1.0, 0.0, "first")],
)
def test_refuses_budgets(permanent, first, named):
    with pytest.raises(ValueError, match=named):
        lp.rappor(permanent, first)


@pytest.mark.parametrize(
    ("f", "p", "q"), [(0.0, 0.4, 0.6), (0.5, 0.0, 0.6), (0.5, 0.7, 0.6), (0.5, 0.4, 1.0)]
)
def test_refuses_parameters(f, p, q):
    with pytest.raises(ValueError, match=r"f must|p must|q must"):
        lp.rappor_budgets(f, p, q)
