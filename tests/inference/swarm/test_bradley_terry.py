"""Strengths by Bradley-Terry: hand tables, the gradient, a reference in float64, and choix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.inference import bradley_terry, bradley_terry_likelihood

N = 6


@functools.cache
def fitted(iterations=400, tolerance=None):
    return jax.jit(
        lambda wins, prior, present: bradley_terry(
            wins, prior=prior, iterations=iterations, tolerance=tolerance, present=present
        )
    )


def fit(wins, prior=0.0, present=None):
    wins = np.asarray(wins, np.float32)
    return fitted()(wins, prior, np.ones(len(wins), bool) if present is None else present)


def random_wins(seed, n=N):
    return np.random.default_rng(seed).integers(1, 9, (n, n)).astype(np.float64)


def reference(wins, prior, iterations=3000):
    """The sheet's iteration, entry by entry."""
    n = len(wins)
    won = np.array(wins, float) + prior
    np.fill_diagonal(won, 0)
    pi = np.ones(n)
    for _ in range(iterations):
        for_each = [
            won[i].sum()
            / sum((won[i, j] + won[j, i]) / (pi[i] + pi[j]) for j in range(n) if j != i)
            for i in range(n)
        ]
        pi = np.array(for_each)
        pi /= np.exp(np.log(pi).mean())
    return pi


def test_hand_tables():
    pair = fit([[0, 3], [1, 0]]).strength
    np.testing.assert_allclose(pair[0] / pair[1], 3, rtol=1e-5)
    three = fit([[7, 3, 3], [1, 7, 2], [1, 2, 7]])
    np.testing.assert_allclose(three.strength, [2.0801, 0.6934, 0.6934], atol=1e-4)
    np.testing.assert_allclose(three.strength / three.strength.sum(), [0.6, 0.2, 0.2], rtol=1e-5)
    np.testing.assert_allclose(three.log_strength.sum(), 0, atol=1e-5)
    assert not three.regularised
    # Nobody to compare with.
    np.testing.assert_array_equal(fit([[2.0]]).strength, 1)


@pytest.mark.parametrize("prior", [0.0, 0.7])
def test_random_wins_are_as_in_a_reference_and_their_gradient_vanishes(prior):
    wins = random_wins(1)
    found = fit(wins, prior)
    np.testing.assert_allclose(found.strength, reference(wins, prior, 400), rtol=2e-5)
    slope = jax.grad(bradley_terry_likelihood)(found.log_strength, wins + prior)
    np.testing.assert_allclose(slope, 0, atol=2e-4)


def test_the_likelihood_is_the_formula_and_rises():
    wins = random_wins(2)
    climbed, iterate = (
        [],
        jax.jit(
            lambda w: [
                bradley_terry(w, prior=1.0, iterations=t, tolerance=None) for t in (1, 2, 4, 8)
            ]
        ),
    )
    for found in iterate(wins):
        beta = np.asarray(found.log_strength, float)
        value = sum(
            (wins[i, j] + 1) * (beta[i] - np.logaddexp(beta[i], beta[j]))
            for i in range(N)
            for j in range(N)
            if i != j
        )
        ours = bradley_terry_likelihood(found.log_strength, wins + 1)
        np.testing.assert_allclose(ours, value, rtol=1e-5)
        climbed.append(value)
    assert np.all(np.diff(climbed) > 0)


def test_scale_and_names_do_not_matter():
    wins = random_wins(3)
    strength = fit(wins).strength
    np.testing.assert_allclose(fit(7.5 * wins).strength, strength, rtol=1e-5)
    order = np.random.default_rng(3).permutation(N)
    np.testing.assert_allclose(fit(wins[np.ix_(order, order)]).strength, strength[order], rtol=1e-5)


def test_where_each_pair_is_judged_equally_the_order_is_that_of_wins():
    rng = np.random.default_rng(4)
    upper = rng.integers(0, 8, (200, N, N))
    wins = np.triu(upper, 1) + np.swapaxes(np.triu(7 - upper, 1), 1, 2)
    ranked = jax.jit(jax.vmap(lambda w: bradley_terry(w, iterations=60, tolerance=None).strength))
    strength, won = np.asarray(ranked(np.float32(wins))), wins.sum(2)
    above = won[:, :, None] > won[:, None]
    assert np.all((strength[:, :, None] > strength[:, None])[above])
    level = won[:, :, None] == won[:, None]
    ratio = strength[:, :, None] / strength[:, None]
    np.testing.assert_allclose(ratio[level], 1, rtol=1e-4)


def test_who_is_absent_does_not_count():
    wins, there = random_wins(5), np.arange(N) != 2
    found = fit(wins, 0.3, there)
    np.testing.assert_allclose(
        found.strength[there], reference(wins[np.ix_(there, there)], 0.3, 400), rtol=2e-5
    )
    assert found.strength[2] == 0
    assert found.log_strength[2] == -np.inf


def test_wins_without_a_finite_optimum():
    chain = np.triu(np.ones((4, 4)), 1)
    with pytest.raises(ValueError, match="wins must be strongly connected where prior is 0"):
        bradley_terry(chain, prior=0.0)
    # Traced they are given a prior, and it is said.
    found = fit(chain)
    assert found.regularised
    np.testing.assert_allclose(found.strength, fit(chain, 0.1).strength, rtol=1e-6)
    assert not fit(chain, 0.1).regularised
    circle = chain.copy()
    circle[3, 0] = 1
    assert not fit(circle).regularised
    # A chain of those that are there counts, not who is absent.
    assert fit(circle, 0.0, np.array([True, True, True, False])).regularised


def test_a_tolerance_ends_the_iteration():
    wins = np.float32(random_wins(6))
    found = fitted(400, 1e-4)(wins, 0.0, np.ones(N, bool))
    assert 2 < found.iterations < 100
    assert found.change < 1e-4
    np.testing.assert_allclose(found.strength, fit(wins).strength, rtol=1e-2)


def test_choix_finds_the_same_strengths():
    choix = pytest.importorskip("choix", reason="pip install choix")
    with jax.enable_x64(True):
        run = jax.jit(
            lambda w: bradley_terry(w, prior=0.1, iterations=2000, tolerance=None).log_strength
        )
        for seed in range(5):
            wins = random_wins(seed, 12) * (np.random.default_rng(seed).random((12, 12)) < 0.5)
            np.fill_diagonal(wins, 0)
            whole = wins + 0.1 * ~np.eye(12, dtype=bool)
            theirs = choix.ilsr_pairwise_dense(whole, tol=1e-12, max_iter=500)
            np.testing.assert_allclose(run(wins), theirs - theirs.mean(), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wins": np.ones((2, 3))}, "wins must be a square matrix"),
        ({"wins": -np.ones((2, 2))}, "wins must be finite numbers"),
        ({"prior": -1.0}, "prior must be"),
        ({"iterations": 0}, "iterations must be"),
        ({"tolerance": 0.0}, "tolerance must be"),
        ({"present": np.ones(3, bool)}, "present must be"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        bradley_terry(**({"wins": np.ones((2, 2))} | change))


def test_strengths_are_differentiable():
    wins = jnp.asarray(random_wins(7), jnp.float32)

    @jax.jit
    def lead(prior):
        beta = bradley_terry(wins, prior=prior, iterations=200, tolerance=None).log_strength
        return jnp.max(beta) - jnp.min(beta)

    slope = jax.jit(jax.grad(lead))(0.5)
    np.testing.assert_allclose(slope, (lead(0.51) - lead(0.49)) / 0.02, rtol=2e-2)
    assert slope < 0
