"""Ranks by comparing pairs are those of a stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.kernels.ranks import PAIRS, ranks


@pytest.mark.some(2)
@pytest.mark.parametrize("length", [1, 27, PAIRS, PAIRS + 1])
def test_ranks_are_places_in_a_stable_sort(length):
    generator = np.random.default_rng(length)
    values = generator.integers(-3, 4, (2, 5, length)).astype(np.float32)
    values[:, 1] = generator.standard_normal((2, length))
    values[0, 2, : length // 2] = np.nan
    values[1, 3, ::3] = np.inf
    values[1, 4, ::2] = -np.inf
    values[0, 0, ::2] = -0.0
    expected = np.argsort(np.argsort(values, axis=-1, kind="stable"), axis=-1, kind="stable")
    found = jax.jit(ranks)(jnp.asarray(values))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(jax.vmap(ranks)(jnp.asarray(values)), expected)
