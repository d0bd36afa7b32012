"""Group normalisation against flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dflax.models import GroupNorm

KEY = jax.random.key(0)


@pytest.mark.some(2)
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("space", [(), (5,), (4, 3)])
def test_drop_in_for_flax(groups, space):
    x = 2.0 + jax.random.normal(KEY, (3, *space, 6))
    ours, theirs = GroupNorm(groups, epsilon=1e-3), nn.GroupNorm(groups, epsilon=1e-3)
    params = jax.jit(theirs.init)(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(ours.init)(KEY, x), params)
    params = jax.tree.map(lambda leaf: leaf + 0.2 * jnp.arange(6.0), params)

    def facts(module):
        def value(params, x):
            y = module.apply(params, x)
            return jnp.sum(jnp.sin(y) * y), y

        return jax.value_and_grad(value, (0, 1), has_aux=True)(params, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
        *jax.jit(lambda: (facts(ours), facts(theirs)))(),
    )


def test_half_precision_keeps_its_statistics_in_float32():
    x = jax.random.normal(KEY, (2, 8, 8, 4)) + 5.0
    y = GroupNorm(2, dtype=jnp.bfloat16)
    out = y.apply(y.init(KEY, x), x)
    assert out.dtype == jnp.bfloat16
    assert np.abs(out.astype(jnp.float32).mean((1, 2))).max() < 1.0
    np.testing.assert_allclose(out.astype(jnp.float32).std(), 1.0, atol=0.02)


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="num_groups must divide the 6 channels, got 4"):
        GroupNorm(4).init(KEY, jnp.ones((1, 2, 6)))
    with pytest.raises(ValueError, match="num_groups must be an integer >= 1, got 0"):
        GroupNorm(0).init(KEY, jnp.ones((1, 2, 6)))


@pytest.mark.parametrize("epsilon", [-1.0, 0.0, float("nan")])
def test_epsilon_must_be_positive(epsilon):
    with pytest.raises(ValueError, match=r"epsilon must be a finite number in \(0, inf\)"):
        GroupNorm(2, epsilon=epsilon).init(KEY, jnp.ones((1, 2, 4)))
