"""The gradients of a convolution's kernel on single examples."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dflax.kernels.correlation import (
    Geometry,
    each,
    receptive_fields,
    tiles_of_inputs,
    winograd_pays,
)


def kernel_gradients(
    geometry: Geometry, x: Float[Array, "B *space C"], gradients: Float[Array, "B *outputs O"]
) -> Float[Array, "B K O"]:
    """g[b, (t, c), o] = sum_p x[b, strides p + dilation t - low, c] gradients[b, p, o].

    The sum over b is the gradient of `dflax.kernels.correlation.correlate` in its kernel. By Winograd's
    method where it pays for a single example, in place of which autodiff would transform every gradient
    twice, and as products of patches otherwise.

    Args:
      geometry: fits the shapes of the other two; one group of channels.
      x: inputs of the convolution.
      gradients: of its outputs.

    Returns:
      `[B, taps * C, O]`, channels next to each other.
    """
    if x.dtype == gradients.dtype and winograd_pays(
        geometry, 1, (x.shape[-1], gradients.shape[-1]), x.dtype
    ):
        return _winograd(geometry, x, gradients)
    seen = receptive_fields(geometry, x)
    rows = [leaf.reshape(len(x), -1, leaf.shape[-1]) for leaf in (seen, gradients)]
    return jnp.einsum("bpk,bpo->bko", *rows)


def _winograd(geometry: Geometry, x: Array, gradients: Array) -> Array:
    """The transpose of `dflax.kernels.correlation`'s, example by example."""
    odd = [(0, outer % 2) for outer in geometry.outputs]
    parts = [jnp.pad(gradients, ((0, 0), *odd, (0, 0)))]
    for axis in range(len(geometry.outputs)):
        parts = each(lambda part, axis=axis: _of_outputs(part, axis + 1), parts)
    products = [
        jnp.einsum(
            "bpc,bpo->bco", *(leaf.reshape(len(x), -1, leaf.shape[-1]) for leaf in (tile, part))
        )
        for tile, part in zip(tiles_of_inputs(geometry, x), parts, strict=True)
    ]
    taps = jnp.stack(_taps(products), axis=1)
    return taps.reshape(len(x), -1, taps.shape[-1])


def _of_outputs(gradients: Array, axis: int) -> list[Array]:
    """Of the four products of each pair of outputs along an axis."""
    even, odd = (lax.slice_in_dim(gradients, i, gradients.shape[axis], 2, axis) for i in range(2))
    return [even, even + odd, even - odd, -odd]


def _taps(products: list[Array]) -> list[Array]:
    """Of three taps per axis, from those of the four products."""
    if len(products) == 1:
        return products
    quarter = len(products) // 4
    of_axis = [_taps(products[i * quarter : (i + 1) * quarter]) for i in range(4)]
    three = [
        (a + 0.5 * (b + c), 0.5 * (b - c), 0.5 * (b + c) + d)
        for a, b, c, d in zip(*of_axis, strict=True)
    ]
    return [tap[place] for place in range(3) for tap in three]
