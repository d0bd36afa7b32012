"""The audit: its bound against the formula, a broken mechanism that is caught, and a right one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import dflax as dx

pytest.importorskip("jax_privacy")
privacy = dx.privacy
KEY = jax.random.key(0)
CANARIES, FEATURES, CLIENTS, ROUNDS, DELTA = 200, 10, 8, 40, 1e-5


def test_the_bound_is_the_binomial_tail():
    scores = np.concatenate([np.arange(60.0), np.arange(60.0) + 1000])
    included = np.arange(120) >= 60
    # All 40 guesses right: q^40 = 0.05.
    q = 0.05 ** (1 / 40)
    found = privacy.epsilon_lower_bound(scores, included, 1e-9, guesses=40)
    np.testing.assert_allclose(found, np.log(q / (1 - q)), atol=1e-3)
    wrong = included.copy()
    wrong[[0, 1, -1]] = ~wrong[[0, 1, -1]]
    found = privacy.epsilon_lower_bound(scores, wrong, 1e-9, guesses=40)
    np.testing.assert_allclose(stats.binom.sf(36, 40, 1 / (1 + np.exp(-found))), 0.05, atol=1e-3)
    # A delta of the claim explains some of it; more confidence says less.
    assert 0 < privacy.epsilon_lower_bound(scores, wrong, 1e-3, guesses=40) < found
    assert privacy.epsilon_lower_bound(scores, wrong, 1e-9, guesses=40, confidence=0.99) < found
    assert privacy.epsilon_lower_bound(scores, wrong, 1e-9, guesses=120) > 0


def test_guesses_in_the_dark_refute_nothing():
    generator = np.random.default_rng(0)
    bounds = [
        privacy.epsilon_lower_bound(
            generator.normal(size=80), generator.random(80) < 0.5, 1e-6, guesses=40
        )
        for _ in range(40)
    ]
    # With confidence 0.95 no more than 1 in 20 may be above 0.
    assert np.mean(np.array(bounds) > 0) <= 0.15
    # Scores without any difference are guesses in the dark, in whatever order they come.
    assert privacy.epsilon_lower_bound(np.zeros(80), np.arange(80) > 39, 1e-6, guesses=40) < 1


@functools.cache
def made():
    """Canaries with a feature of their own each, and DP-SGD, a program of its noise and key."""
    generator = np.random.default_rng(0)
    inputs = np.zeros((400, FEATURES + CANARIES), np.float32)
    inputs[:, :FEATURES] = generator.normal(size=(400, FEATURES))
    labels = (inputs[:, :FEATURES] @ generator.normal(size=(FEATURES, 3))).argmax(1)
    data = dx.data.from_arrays(inputs, labels.astype(np.int32))
    ones = np.zeros((CANARIES, FEATURES + CANARIES), np.float32)
    ones[np.arange(CANARIES), FEATURES + np.arange(CANARIES)] = 3.0
    with_them = privacy.with_canaries(
        data, dx.data.iid(labels, CLIENTS, seed=0), CANARIES, seed=0, inputs=ones
    )
    probability = 0.3
    sampled = privacy.poisson_sampled(with_them.partition, probability)
    source = dx.Federation(
        with_them.data,
        sampled,
        batch_size=privacy.places(with_them.partition, probability, 7.0),
        local_steps=1,
        weights=jnp.ones(CLIENTS),
    )
    expected = probability * len(with_them.data) / CLIENTS
    params = {"w": jnp.zeros((FEATURES + CANARIES, 3)), "b": jnp.zeros(3)}

    @jax.jit
    def end(noise_multiplier, source, key):
        seen = privacy.clipped_per_example(loss, 1.0, expected=expected)
        seen = privacy.noisy_gradient(seen, noise_multiplier / expected)
        algorithm = dx.server.fedavg(seen, optax.sgd(2.0))
        return dx.rollout(algorithm, algorithm.init(KEY, params), source, key, ROUNDS)[0].server

    return with_them, source, params, end


def audited(noise_multiplier, seed):
    """A lower bound of epsilon from one run."""
    with_them, source, params, end = made()
    model = end(noise_multiplier, source, jax.random.key(seed)).params
    scores = privacy.canary_scores(loss, params, model, with_them.examples)
    return privacy.epsilon_lower_bound(scores, with_them.included, DELTA, guesses=100)


def loss(params, batch, key):
    scores = batch.inputs @ params["w"] + params["b"]
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch.labels)
    return jnp.mean(losses), {}


@pytest.mark.slow
def test_noise_left_out_is_caught_and_noise_put_in_holds():
    plan = privacy.examples_plan(made()[1], None, ROUNDS)
    claimed = 2.0
    z = privacy.noise_for(plan, claimed, DELTA)
    assert audited(0.0, 0) > claimed
    assert audited(z, 1) <= claimed
    # A thirtieth of the noise that the claim needs.
    assert audited(z / 30, 2) > claimed


def test_canaries_are_dealt_by_coins():
    labels = np.arange(60) % 3
    inputs = np.arange(60 * 4).reshape(60, 2, 2).astype(np.uint8)
    data = dx.data.Dataset(jnp.asarray(inputs), jnp.asarray(labels), scale=1 / 255, classes=3)
    partition = dx.data.iid(labels, 5)
    for own_clients in (False, True):
        made = privacy.with_canaries(data, partition, 40, seed=4, own_clients=own_clients)
        there = int(made.included.sum())
        assert 8 < there < 32
        assert len(made.data) == 60 + there
        assert made.partition.clients == 5 + own_clients * there
        np.testing.assert_array_equal(
            made.data.inputs[60:], np.asarray(made.examples.inputs)[made.included]
        )
        np.testing.assert_array_equal(
            made.data.labels[60:], np.asarray(made.examples.labels)[made.included]
        )
        assert made.data.inputs.dtype == np.uint8
        owned = np.concatenate(made.partition.as_lists())
        np.testing.assert_array_equal(np.sort(owned), np.arange(60 + there))
