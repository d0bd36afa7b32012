"""Pooling against flax's, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dflax.models import avg_pool, max_pool

GEOMETRIES = [
    ((2, 2), (2, 2), "VALID", (4, 6)),
    ((2, 3), (2, 3), "SAME", (4, 6)),
    ((2, 2), (2, 2), "VALID", (5, 7)),
    ((2, 2), (2, 2), "SAME", (5, 7)),
    ((3, 3), (2, 2), "SAME", (6, 6)),
    ((2, 2), None, "VALID", (4, 4)),
    ((2,), (2,), "VALID", (6,)),
]
PAIRS = [(max_pool, nn.max_pool), (avg_pool, nn.avg_pool)]


@pytest.mark.some(2)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["max", "avg"])
@pytest.mark.parametrize(("window", "strides", "padding", "space"), GEOMETRIES)
def test_equals_flax_with_ties(ours, theirs, window, strides, padding, space):
    # Few distinct values: most windows hold their maximum more than once.
    x = jax.random.randint(jax.random.key(0), (3, 2, *space, 3), 0, 3).astype(jnp.float32)

    def facts(pool):
        def value(x):
            y = pool(x, window, strides, padding)
            return jnp.sum(jnp.sin(y + jnp.arange(y.size).reshape(y.shape))), y

        (_, y), gradient = jax.vmap(jax.value_and_grad(value, has_aux=True))(x)
        tangent = jax.jvp(lambda x: value(x)[0], (x[0],), (jnp.cos(x[0]),))[1]
        return y, gradient, tangent

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
        *jax.jit(lambda: (facts(ours), facts(theirs)))(),
    )


def test_windows_that_tile_need_no_window_reduction():
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, (2, 2), (2, 2)) ** 2))
    jaxpr = str(jax.make_jaxpr(gradient)(jnp.ones((1, 4, 4, 2))))
    assert "reduce_window" not in jaxpr
    assert "select_and" not in jaxpr


def test_bad_arguments_are_refused():
    x = jnp.ones((1, 4, 4, 2))
    with pytest.raises(ValueError, match="window_shape must be an integer >= 1, got 0"):
        max_pool(x, (0, 2))
    with pytest.raises(TypeError, match="strides must be an integer"):
        avg_pool(x, (2, 2), (2.0, 2))
    with pytest.raises(ValueError, match="strides must have 2 entries"):
        max_pool(x, (2, 2), (2,))
    with pytest.raises(ValueError, match="inputs must have 4 >= 1 axes of space"):
        max_pool(x, (1, 2, 2, 2))
    with pytest.raises(ValueError, match="padding must be one of 'SAME', 'VALID', got 'FULL'"):
        avg_pool(x, (2, 2), (2, 2), "FULL")


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_a_window_larger_than_the_image_is_refused_without_padding(pool):
    x = jnp.ones((1, 4, 3, 2))
    with pytest.raises(ValueError, match=r"window_shape must fit .*\(4, 3\).* got \(4, 4\)"):
        pool(x, (4, 4))
    assert pool(x, (4, 4), padding="SAME").shape == x.shape
