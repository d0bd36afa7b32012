"""Logarithms and powers against NumPy, over all exponents and near 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.sparse_coding.powers import positive_log, positive_power

RNG = np.random.default_rng(0)
VALUES = np.concatenate(
    [
        10 ** RNG.uniform(-300, 300, 2000),
        1 + 1e-3 * RNG.normal(size=2000),
        RNG.uniform(0.5, 2, 2000),
        [np.finfo(float).tiny, np.finfo(float).max, 1.0, np.sqrt(0.5), np.sqrt(2)],
    ]
)


def test_logarithms_are_numpys():
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(positive_log)(jnp.asarray(VALUES)))
    np.testing.assert_allclose(found, np.log(VALUES), rtol=5e-16)


@pytest.mark.parametrize("power", [1 / 21, 0.5, 0.9, -0.5, 0.0])
def test_powers_are_numpys(power):
    with jax.enable_x64(True):
        found = jax.jit(positive_power)(jnp.asarray(VALUES), jnp.asarray(power))
    np.testing.assert_allclose(found, VALUES**power, rtol=3e-13)


def test_powers_end_in_range():
    with jax.enable_x64(True):
        found = jax.jit(positive_power)(jnp.asarray([1e-300, 1e300]), jnp.asarray(3.0))
    np.testing.assert_allclose(np.log(found), [-700, 700], rtol=1e-12)


def test_single_precision_is_jaxs():
    x = jnp.asarray([0.3, 1.0, 7.0], jnp.float32)
    np.testing.assert_array_equal(positive_log(x), jnp.log(x))
    assert positive_power(x, jnp.float32(0.5)).dtype == jnp.float32
