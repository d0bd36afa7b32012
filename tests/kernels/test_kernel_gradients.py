"""Kernels' gradients on single examples against autodiff of XLA's own convolution in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dflax.kernels.correlation import Geometry, winograd_pays
from dflax.kernels.kernel_gradients import kernel_gradients


@pytest.mark.parametrize(
    ("size", "space", "channels", "strides", "padding", "dilation", "winograd"),
    [
        ((3, 3), (14, 14), (32, 33), (1, 1), ((1, 1), (1, 1)), (1, 1), True),
        # Of an odd number of outputs the last tile stands over the edge.
        ((3, 3), (15, 16), (32, 32), (1, 1), ((0, 2), (1, 0)), (1, 1), True),
        ((3, 3), (6, 6), (32, 32), (1, 1), ((1, 1), (1, 1)), (1, 1), False),
        ((3, 2), (9, 8), (3, 5), (2, 1), ((1, 0), (0, 1)), (1, 3), False),
        ((5,), (20,), (2, 3), (2,), ((2, 2),), (1,), False),
    ],
)
def test_they_are_autodiffs(size, space, channels, strides, padding, dilation, winograd):
    generator = np.random.default_rng(0)
    letters = "HW"[: len(size)]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    with jax.enable_x64(True):
        x = jnp.asarray(generator.normal(size=(3, *space, channels[0])))
        kernel = jnp.zeros((*size, *channels))

        def convolved(kernel, x):
            return lax.conv_general_dilated(
                x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers
            )

        @jax.jit
        def both(x, gradients):
            def one(x, d):
                return jax.vjp(lambda k: convolved(k, x[None]), kernel)[1](d[None])[0]

            return kernel_gradients(geometry, x, gradients), jax.vmap(one)(x, gradients)

        shape = jax.eval_shape(convolved, kernel, x).shape
        geometry = Geometry(size, strides, padding, dilation, 1, shape[1:-1])
        assert winograd_pays(geometry, 1, channels, x.dtype) == winograd
        found, wanted = both(x, jnp.asarray(generator.normal(size=shape)))
    np.testing.assert_allclose(found, wanted.reshape(found.shape), rtol=0, atol=1e-11)
