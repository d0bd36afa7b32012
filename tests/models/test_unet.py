"""The U-Net for volumes: its convolution is XLA's, and volumes of any size pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import models
from dflax.models.unet import doubled, halved

KEY = jax.random.key(0)


def by_xla(x, kernel):
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=numbers)


def test_the_convolution_and_its_slopes_are_those_of_xla():
    x = jax.random.normal(KEY, (2, 3, 5, 4, 3))
    kernel = jax.random.normal(jax.random.fold_in(KEY, 1), (3, 3, 3, 3, 2))

    def all_of(convolve):
        def value(x, kernel):
            y = convolve(x, kernel)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(value, (0, 1), has_aux=True))(x, kernel)

    ours, theirs = all_of(models.convolve_3d), all_of(by_xla)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_grids_are_halved_and_doubled():
    x = jnp.arange(5 * 4 * 3.0).reshape(5, 4, 3, 1)
    half = halved(x)
    assert half.shape == (2, 2, 1, 1)
    assert half[1, 0, 0, 0] == x[2:4, :2, :2].max()
    back = doubled(jnp.arange(8.0).reshape(1, 1, 1, 8), (3, 2, 2))
    assert back.shape == (3, 2, 2, 1)
    np.testing.assert_array_equal(back[:2, ..., 0].ravel(), np.arange(8))
    np.testing.assert_array_equal(back[2], 0)


def test_volumes_of_any_size_and_batch_pass():
    model = models.UNet3D(2, 2)
    x = jax.random.normal(KEY, (2, 5, 4, 3))

    @jax.jit
    def both(x):
        params = model.init(KEY, x, jnp.zeros(2))
        several = model.apply(params, x, jnp.array([0.1, 0.2]))
        return several, model.apply(params, x[1], jnp.float32(0.2))

    several, alone = both(x)
    assert several.shape == x.shape
    np.testing.assert_allclose(alone, several[1], rtol=1e-4, atol=1e-5)
    params = jax.eval_shape(model.init, KEY, x, jnp.zeros(2))
    with pytest.raises(ValueError, match="x must be volumes of sides >= 2"):
        model.apply(params, x[:, :1], jnp.zeros(2))
