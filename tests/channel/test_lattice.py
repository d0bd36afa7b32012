"""Unbiased rounding to a lattice: its mean, its error, its fixed points, its bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import channel
from dflax.channel import Sending

KEY = jax.random.key(0)
STEP = 0.03
GENERATOR = np.random.default_rng(0)
MESSAGES = {
    "a": jnp.asarray(GENERATOR.normal(size=(3, 6)), jnp.float32),
    "b": jnp.asarray(GENERATOR.normal(size=(3, 2, 2)), jnp.float32),
}


@jax.jit
def sent(step, messages, key):
    weights = jnp.asarray([1.0, 0.0, 2.0])
    return channel.lattice(step).apply(messages, weights, (), Sending(key))


def test_it_has_no_bias_and_errs_by_less_than_a_step():
    values = jnp.asarray([[-0.5, 0.0, 0.01, 0.02, 0.031, 1.0]])
    one = jnp.ones(1)

    @jax.jit
    def many(keys):
        def draw(key):
            return channel.lattice(STEP).apply(values, one, (), Sending(key))[0][0]

        return jax.vmap(draw)(keys)

    drawn = np.asarray(many(jax.random.split(KEY, 100_000)), np.float64)
    true = np.asarray(values[0], np.float64)
    share = true / STEP - np.floor(true / STEP)
    deviation = STEP * np.sqrt(share * (1 - share))
    assert (np.abs(drawn.mean(0) - true) <= 3 * deviation / np.sqrt(1e5) + 1e-7).all()
    np.testing.assert_allclose(drawn.std(0), deviation, atol=1e-4)
    assert np.abs(drawn - true).max() < STEP * (1 + 1e-5)
    assert deviation.max() <= STEP / 2


def test_points_of_the_lattice_stay():
    once = sent(STEP, MESSAGES, KEY)[0]
    twice = sent(STEP, once, jax.random.key(1))[0]
    for name, leaf in once.items():
        np.testing.assert_array_equal(twice[name], leaf)
        assert (leaf != MESSAGES[name]).any()
        places = np.asarray(leaf, np.float64) / STEP
        np.testing.assert_allclose(places, np.round(places), atol=1e-4)


def test_a_step_of_0_is_the_identity_in_the_same_program():
    out, weights, state, metrics = sent(0.0, MESSAGES, KEY)
    for name, leaf in MESSAGES.items():
        np.testing.assert_array_equal(out[name], leaf)
    assert state == ()
    assert metrics["bytes_sent"] == metrics["bytes_uncompressed"] == 2 * 10 * 4
    np.testing.assert_array_equal(weights, [1, 0, 2])


@pytest.mark.parametrize("step", [STEP, 0.5])
def test_bits_follow_from_the_range(step):
    out, *_, metrics = sent(step, MESSAGES, KEY)
    bits = 0.0
    for agent in (0, 2):
        for leaf in out.values():
            own = np.asarray(leaf[agent], np.float64)
            bits += own.size * np.log2(np.ptp(own) / step + 1)
    np.testing.assert_allclose(metrics["bytes_sent"], bits / 8, rtol=1e-5)
    assert metrics["bytes_uncompressed"] == 2 * 10 * 4


def test_senders_draw_for_themselves_and_double_precision_counts_64_bits():
    with jax.enable_x64(True):
        alike = jnp.full((2, 50), 0.5 * STEP)
        rounded, *_, metrics = channel.lattice(STEP).apply(alike, jnp.ones(2), (), Sending(KEY))
    assert rounded.dtype == jnp.float64
    assert 0 < (rounded[0] != rounded[1]).sum() < 50
    assert metrics["bytes_uncompressed"] == 2 * 50 * 8


@pytest.mark.parametrize("step", [-0.1, np.nan, "fine"])
def test_bad_steps_are_refused(step):
    with pytest.raises((TypeError, ValueError), match="step must be"):
        channel.lattice(step)
