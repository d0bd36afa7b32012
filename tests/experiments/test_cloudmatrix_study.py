"""The CloudMatrix study's parts: outliers change no function, rates follow the formula."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.inference._cloudmatrix_runs import replicated, saved
from experiments.tasks.quantised_digits import with_outliers

KEY = jax.random.key(2)


def test_larger_hidden_units_change_nothing_that_is_read():
    keys = jax.random.split(KEY, 4)
    kernel, bias = jax.random.normal(keys[0], (5, 200)), jax.random.normal(keys[1], (200,))
    reads, x = jax.random.normal(keys[2], (200, 3)), jax.random.normal(keys[3], (7, 5))
    wide, offset, small = with_outliers(kernel, bias, reads, KEY, 32.0)
    large = np.asarray(jnp.max(jnp.abs(wide), 0) / jnp.max(jnp.abs(kernel), 0))
    assert (large > 30).sum() == 2
    found = jax.nn.relu(x @ wide + offset) @ small
    np.testing.assert_allclose(found, jax.nn.relu(x @ kernel + bias) @ reads, rtol=1e-4, atol=1e-4)


def test_a_cache_multiplies_throughput_by_the_formula():
    np.testing.assert_allclose([saved(0.0), saved(0.5), saved(0.9)], [1.0, 1.44, 2.22], rtol=3e-3)


def test_replicas_are_told_by_spares_and_seeds():
    told = replicated((0, 16), range(2), 32)
    assert told["same"].shape == (2, 2)
    assert (told["same"][1] < told["same"][0]).all()
    # 256 slots without a spare one: lambda is the busiest expert over the mean.
    np.testing.assert_allclose(told["busiest"][0], told["same"][0], rtol=1e-6)
