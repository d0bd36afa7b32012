"""The cost of noisy momenta: the printed numbers, the bounds by brute force, and what they reduce to."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dflax as dx
from dflax import privacy
from dflax.privacy.momentum_plans import momentum_weights

pytest.importorskip("dp_accounting")
DELTA = 1e-6


@functools.cache
def federation(owned=600, probability=0.05):
    """Two clients, the smaller one with b = 30 of 600 examples; no minibatch overflows."""
    data = dx.data.Dataset(jnp.zeros((3 * owned, 1)), jnp.zeros(3 * owned, jnp.int32))
    parts = dx.data.from_indices([np.arange(owned), np.arange(owned, 3 * owned)])
    sampled = privacy.poisson_sampled(parts, probability)
    return dx.Federation(data, sampled, batch_size=2 * owned, local_steps=1)


def costs(noise, rounds, beta=0.9, **options):
    plans = privacy.momentum_plans(federation(), noise, rounds, beta=beta, **options)
    return plans, [privacy.epsilon(plan, DELTA) for plan in plans]


@pytest.mark.parametrize(
    ("sigma", "rounds", "printed"),
    [(0.05, 1000, 6.67), (0.05, 2000, 9.78), (0.1, 1000, 2.71), (0.1, 2000, 3.94)],
)
def test_without_clipping_it_is_dp_sgd_of_the_same_noise(sigma, rounds, printed):
    plans, (_, epsilon) = costs(sigma, rounds)
    np.testing.assert_allclose(epsilon, printed, rtol=0.01)
    assert 30 * sigma <= plans.unclipped.noise_multiplier * (1 + 1e-6) <= 1.001 * 30 * sigma
    assert plans.unclipped.failure == 0


def rho_of(plan):
    return plan.rounds / (2 * plan.noise_multiplier**2)


def test_the_bound_that_always_holds_is_the_printed_one():
    plans, (epsilon, _) = costs(0.05, 1000)
    rho = rho_of(plans.always)
    np.testing.assert_allclose(rho, 219.2, rtol=1e-3)
    np.testing.assert_allclose(epsilon, 329, rtol=0.01)
    # No more than the textbook's conversion.
    assert epsilon <= rho + 2 * math.sqrt(rho * math.log(1 / DELTA))
    fading = optax.linear_schedule(1.0, 0.3, 1000)
    decayed, (larger, _) = costs(0.05, 1000, record_clip=fading)
    np.testing.assert_allclose(larger, 335, rtol=0.01)
    assert rho_of(decayed.always) > rho


@pytest.mark.slow
def test_at_small_noise_the_orders_that_the_accountant_leaves_out_are_found_by_quadrature():
    """z = 0.6: orders below 1.6 do not converge in dp-accounting: its epsilons are 3 and 6 % above."""
    z, p = 0.6, 0.05
    x = np.linspace(-14, 16, 400_001)
    density = np.exp(-(x**2) / (2 * z**2)) / math.sqrt(2 * math.pi) / z
    ratio = 1 - p + p * np.exp((2 * x - 1) / (2 * z**2))
    for rounds, printed, coarse in ((1000, 42.9, 44.26), (2000, 64.3, 68.38)):
        found = []
        for order in np.arange(1.1, 2.5, 0.1):
            renyi = math.log(np.trapezoid(density * ratio**order, x)) / (order - 1)
            tail = (math.log(DELTA) + math.log(order)) / (order - 1)
            found.append(rounds * renyi + math.log((order - 1) / order) - tail)
        np.testing.assert_allclose(min(found), printed, rtol=0.01)
        plans, (_, epsilon) = costs(0.02, rounds)
        np.testing.assert_allclose(epsilon, coarse, rtol=0.01)
        # Privacy loss distributions are tighter than both.
        assert privacy.epsilon(plans.unclipped, DELTA, accountant="pld") < printed


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


def test_the_split_of_the_noise_bounds_what_the_momenta_tell():
    """Without clipping the momenta are A g + noise. For any d, |A d|^2 is at most what |d|^2 pays."""
    rng = np.random.default_rng(0)
    fading = np.linspace(1.0, 0.3, 40)
    for beta in (0.0, 0.6, 0.9):
        weights = momentum_weights(40, beta, lambda t: jnp.asarray(fading)[t])
        most = (weights.sum(1) @ weights).max()
        for shift in (np.ones(40), *rng.normal(size=(20, 40)), *np.eye(40)[::7]):
            assert np.sum((weights @ shift) ** 2) <= most * np.sum(shift**2) * (1 + 1e-9)


def test_without_momentum_and_sampling_both_are_the_gaussian_mechanism():
    data = dx.data.Dataset(jnp.zeros((4, 1)), jnp.zeros(4, jnp.int32))
    parts = privacy.poisson_sampled(dx.data.from_indices([np.arange(4)]), 1.0)
    source = dx.Federation(data, parts, batch_size=4, local_steps=1)
    plans = privacy.momentum_plans(source, 0.5, 5, beta=0.0)
    both = [privacy.epsilon(plan, 1e-5) for plan in plans]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-6)
    assert plans.always.noise_multiplier == pytest.approx(2.0)


def test_wrong_arguments_are_refused():
    good = {"noise": 1.0, "rounds": 3, "beta": 0.9}
    for change in ({"noise": 0.0}, {"beta": 1.0}, {"rounds": 0}, {"record_clip": -1.0}):
        (name,) = change
        with pytest.raises(ValueError, match=name):
            privacy.momentum_plans(federation(), **(good | change))
    source = federation()
    plain = source.replace(partition=dx.data.from_indices([np.arange(9), np.arange(9, 18)]))
    with pytest.raises(ValueError, match="Poisson-sampled"):
        privacy.momentum_plans(plain, **good)
