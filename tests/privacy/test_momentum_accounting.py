"""The cost of noisy momenta: the printed numbers, the bounds by brute force, and what they reduce to."""

import math

import numpy as np
import optax
import pytest

from dflax import privacy
from dflax.privacy.momentum_accounting import momentum_weights

pytest.importorskip("dp_accounting")
SETTING = {"beta": 0.9, "probability": 0.05, "delta": 1e-6}


@pytest.mark.parametrize(
    ("multiplier", "rounds", "epsilon"),
    [(1.5, 1000, 6.67), (1.5, 2000, 9.78), (3.0, 1000, 2.71), (3.0, 2000, 3.94)],
)
def test_without_clipping_it_is_dp_sgd_of_the_same_noise(multiplier, rounds, epsilon):
    found = privacy.momentum_cost(multiplier, rounds=rounds, **SETTING)
    np.testing.assert_allclose(found.unclipped_epsilon, epsilon, rtol=0.01)
    assert multiplier <= found.multiplier <= 1.001 * multiplier


def test_the_bound_that_always_holds_is_the_printed_one():
    found = privacy.momentum_cost(1.5, rounds=1000, **SETTING)
    np.testing.assert_allclose(found.rho, 219.2, rtol=1e-3)
    np.testing.assert_allclose(found.epsilon, 329, rtol=0.01)
    # No more than the textbook's conversion.
    assert found.epsilon <= found.rho + 2 * math.sqrt(found.rho * math.log(1e6))
    fading = optax.linear_schedule(1.0, 0.3, 1000)
    decayed = privacy.momentum_cost(1.5, rounds=1000, record_clip=fading, **SETTING)
    np.testing.assert_allclose(decayed.epsilon, 335, rtol=0.01)
    assert decayed.rho > found.rho


@pytest.mark.parametrize("order", [1.3, 1.4, 1.5])
def test_at_small_noise_the_divergences_that_the_accountant_leaves_out_are_found_by_quadrature(order):
    """z = 0.6: orders below 1.6 do not converge in dp-accounting, so its epsilon is 3 to 6 % above."""
    z, p, delta = 0.6, 0.05, 1e-6
    x = np.linspace(-12, 14, 400_001)
    base = np.exp(-(x**2) / (2 * z**2)) / math.sqrt(2 * math.pi) / z
    ratio = 1 - p + p * np.exp((2 * x - 1) / (2 * z**2))
    renyi = math.log(np.trapezoid(base * ratio**order, x)) / (order - 1)
    for rounds, fine, coarse in ((1000, 42.9, 44.26), (2000, 64.3, 68.38)):
        tail = (math.log(delta) + math.log(order)) / (order - 1)
        epsilon = rounds * renyi + math.log((order - 1) / order) - tail
        assert epsilon >= 0.999 * fine
        if order == {1000: 1.4, 2000: 1.3}[rounds]:
            np.testing.assert_allclose(epsilon, fine, rtol=0.01)
        found = privacy.momentum_cost(z, rounds=rounds, **SETTING)
        np.testing.assert_allclose(found.unclipped_epsilon, coarse, rtol=0.01)


def test_weights_are_those_of_the_recursion_and_their_products_stay_below_one():
    """max_s sum_t a_ts sum_u a_tu is 0.90 at T = 50 and beta 0.9, and never more than 1."""
    weights = momentum_weights(50, 0.9)
    unit, momentum = np.eye(50), np.zeros(50)
    for t in range(50):
        momentum = 0.9 * momentum + 0.1 * unit[t]
        np.testing.assert_allclose(weights[t], momentum, atol=1e-15)
    np.testing.assert_allclose(weights.sum(1), 1 - 0.9 ** np.arange(1, 51))
    np.testing.assert_allclose((weights.sum(1) @ weights).max(), 0.90, atol=0.005)
    for beta in (0.0, 0.5, 0.99):
        for rounds in (1, 10, 300):
            weights = momentum_weights(rounds, beta)
            assert (weights.sum(1) @ weights).max() <= 1 + 1e-12


def test_the_split_of_the_noise_bounds_the_divergence_of_the_linear_release():
    """Without clipping and sampling the momenta are M g + noise: 2 rho is the largest |M d|^2 / z^2.

    For a record in every round d is all ones; the DP-SGD that stands for it costs T / multiplier^2.
    """
    for beta in (0.0, 0.6, 0.9):
        for rounds in (1, 7, 40):
            found = privacy.momentum_cost(
                2.0, beta=beta, probability=1.0, rounds=rounds, delta=1e-5
            )
            exact = np.square(momentum_weights(rounds, beta).sum(1)).sum() / (2 * 2.0**2)
            np.testing.assert_allclose(found.rho, exact)
            assert found.rho <= rounds / (2 * found.multiplier**2) * (1 + 1e-9)


def test_without_momentum_both_are_the_gaussian_mechanism():
    found = privacy.momentum_cost(3.0, beta=0.0, probability=1.0, rounds=5, delta=1e-5)
    np.testing.assert_allclose(found.epsilon, found.unclipped_epsilon, rtol=1e-6)
    assert found.multiplier == 3.0
    assert found.rho == pytest.approx(5 / 18)


def test_wrong_arguments_are_refused():
    good = {"noise_multiplier": 1.0, "rounds": 3, **SETTING}
    for change in (
        {"noise_multiplier": 0.0},
        {"beta": 1.0},
        {"probability": 0.0},
        {"rounds": 0},
        {"delta": 1.0},
        {"record_clip": -1.0},
    ):
        (name,) = change
        with pytest.raises(ValueError, match=name):
            privacy.momentum_cost(**(good | change))
