"""Three ways to compute a convolution, and which of them a platform runs fastest."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from dflax import validation
from dflax.kernels.wall import wall

Method = Literal["auto", "patches", "winograd", "native"]

# Measured on CPU: with fewer channels the products are too small for what the sums around them cost,
# with fewer tiles the transforms of the kernel are not made good, and in one dimension (1.5) or where
# tiles stand over the edge, too few multiplications are saved.
WINOGRAD_CHANNELS = 32
WINOGRAD_TILES = 48
WINOGRAD_SAVES = 1.6


class Geometry(NamedTuple):
    """Everything static about a convolution of channels-last inputs `[B, *space, C]`, hashable.

    Attributes:
      size: lengths of the kernel, one or two.
      strides: per dimension, >= 1.
      padding: `(low, high)` per dimension, >= 0.
      dilation: spacing of the kernel's taps per dimension, >= 1.
      groups: number of channel groups.
      outputs: lengths of the output.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    outputs: tuple[int, ...]

    @property
    def pointwise(self) -> bool:
        """Whether every output sees one input pixel, the one at its own place."""
        unpadded = all(pad == (0, 0) for pad in self.padding)
        return self._plain and unpadded and set(self.size) == {1}

    @property
    def tiles_of_three(self) -> bool:
        """Whether Winograd's filtering of three taps applies."""
        return self._plain and set(self.size) == {3} and set(self.dilation) == {1}

    @property
    def _plain(self) -> bool:
        return set(self.strides) == {1} and self.groups == 1


def correlate(
    geometry: Geometry,
    x: Float[Array, "B *space C"],
    kernel: Float[Array, "*K c O"],
    method: Method = "auto",
) -> Float[Array, "B *outputs O"]:
    """y[b, p, o] = sum_{t, c} x[b, strides p + dilation t - low, c] kernel[t, c, o].

    Args:
      geometry: fits the shapes of the other two.
      x: inputs, one batch axis.
      kernel: `[*size, C / groups, O]`.
      method: see `dflax.models.convolve`.

    Raises:
      ValueError: a method that is unknown or cannot compute this convolution.
    """
    if method not in get_args(Method):
        raise ValueError(
            f"method must be one of {get_args(Method)}, got {validation.shown(method)}."
        )
    if method == "winograd" and not geometry.tiles_of_three:
        raise ValueError(
            "method 'winograd' needs a kernel of 3 (x 3) taps without strides, dilation and groups, "
            f"got {geometry}. Use 'auto'."
        )
    if method != "auto":
        return _METHODS[method](geometry, x, kernel)
    if geometry.pointwise:
        return as_products(geometry, x, kernel)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(as_products, geometry),
        default=functools.partial(_native, geometry),
    )


def as_products(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """What `correlate` computes on CPU: Winograd's method where it pays, and patches otherwise."""
    if geometry.pointwise:
        return _product(x, kernel.reshape(kernel.shape[-2:]))
    pays = kernel.dtype == x.dtype and winograd_pays(
        geometry, x.shape[0], kernel.shape[-2:], x.dtype
    )
    return (_winograd if pays else _patches)(geometry, x, kernel)


def winograd_pays(geometry: Geometry, examples: int, channels: tuple[int, ...], dtype: Any) -> bool:
    """Whether Winograd's method is the faster one on a CPU, for channels of inputs and outputs."""
    if not geometry.tiles_of_three or dtype.itemsize < 4:
        return False
    counts = [-(-outer // 2) for outer in geometry.outputs]
    direct = math.prod(3 * outer for outer in geometry.outputs)
    saved = direct / math.prod(4 * count for count in counts)
    return (
        min(channels) >= WINOGRAD_CHANNELS
        and examples * math.prod(counts) >= WINOGRAD_TILES
        and saved >= WINOGRAD_SAVES
    )


def _patches(geometry: Geometry, x: Array, kernel: Array) -> Array:
    seen = receptive_fields(geometry, x)
    taps, features, groups = math.prod(geometry.size), kernel.shape[-1], geometry.groups
    if groups == 1:
        return _product(seen, kernel.reshape(-1, features))
    seen = seen.reshape(*seen.shape[:-1], taps, groups, -1)
    kernel = kernel.reshape(taps, -1, groups, features // groups)
    products = jnp.einsum("...tgc,tcgo->...go", seen, kernel)
    return products.reshape(*products.shape[:-2], features)


def receptive_fields(geometry: Geometry, x: Float[Array, "B *space C"]) -> Array:
    """`[B, *outputs, taps * C]`: the part of the padded input that each output sees."""
    padded = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))
    windows = []
    for place in np.ndindex(*geometry.size):
        first = [i * d for i, d in zip(place, geometry.dilation, strict=True)]
        spans = [s * (o - 1) + 1 for s, o in zip(geometry.strides, geometry.outputs, strict=True)]
        last = [i + span for i, span in zip(first, spans, strict=True)]
        ends = (x.shape[0], *last, x.shape[-1])
        windows.append(lax.slice(padded, (0, *first, 0), ends, (1, *geometry.strides, 1)))
    return jnp.concatenate(windows, axis=-1)


def _winograd(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """Winograd's F(2, 3) along every axis of space: 4 products for 2 outputs and 3 taps."""
    outputs, taps = geometry.outputs, [kernel]
    for _ in outputs:
        taps = each(_of_taps, taps)
    # Left as many independent products, the platform runs them side by side, each next to the sums
    # that feed it; stacked into one batch they took twice the time.
    tiles = tiles_of_inputs(geometry, x)
    whole = _outputs([_product(tile, tap) for tile, tap in zip(tiles, taps, strict=True)], 0)
    whole = whole.reshape(x.shape[0], *(-(-outer // 2) * 2 for outer in outputs), kernel.shape[-1])
    return wall(whole[(slice(None), *(slice(outer) for outer in outputs))])


def tiles_of_inputs(geometry: Geometry, x: Array) -> list[Array]:
    """What Winograd's products start from, `[B, *tiles, C]` each, of all axes."""
    fills = [
        (low, 2 * -(-outer // 2) + 2 - low - inner)
        for outer, (low, _), inner in zip(
            geometry.outputs, geometry.padding, x.shape[1:-1], strict=True
        )
    ]
    inputs = [wall(jnp.pad(x, ((0, 0), *fills, (0, 0))))]
    for axis in range(len(geometry.outputs)):
        inputs = each(lambda part, axis=axis: _of_inputs(part, axis + 1), inputs)
    return inputs


def _product(x: Float[Array, "*B C"], kernel: Float[Array, "C O"]) -> Float[Array, "*B O"]:
    """Of matrices: with more axes the CPU compiler transposes the cotangent before its product."""
    flat = x.reshape(-1, x.shape[-1]) @ kernel
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def each(transform: Callable[[Array], list[Array]], parts: list[Array]) -> list[Array]:
    """All results of a transform of every part, in order."""
    return [result for part in parts for result in transform(part)]


def _of_inputs(x: Array, axis: int) -> list[Array]:
    """What the four products of each tile of inputs 2i, ..., 2i + 3 along an axis start from."""
    # Slices with strides would have transposes that ask of every entry whether it lies on one.
    tiles = x.shape[axis] // 2 - 1
    pairs = x.reshape(*x.shape[:axis], tiles + 1, 2, *x.shape[axis + 1 :])
    even, odd = (part.squeeze(axis + 1) for part in lax.split(pairs, (1, 1), axis + 1))
    a, b, c, d = (
        lax.slice_in_dim(part, i, i + tiles, 1, axis) for i in (0, 1) for part in (even, odd)
    )
    return [a - c, b + c, c - b, b - d]


def _of_taps(kernel: Array) -> list[Array]:
    """The first axis of a kernel, its three taps, for the four products."""
    a, b, c = (part.squeeze(0) for part in lax.split(kernel, (1, 1, 1)))
    return [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c]


def _outputs(products: list[Array], axis: int) -> Array:
    """Two neighbouring outputs per tile and axis, side by side, from the products of all axes."""
    if len(products) == 1:
        return products[0]
    quarter = len(products) // 4
    a, b, c, d = (products[i * quarter : (i + 1) * quarter] for i in range(4))
    even = [p + q + r for p, q, r in zip(a, b, c, strict=True)]
    odd = [q - r - s for q, r, s in zip(b, c, d, strict=True)]
    return jnp.stack([_outputs(part, axis + 1) for part in (even, odd)], axis=axis + 2)


def _native(geometry: Geometry, x: Array, kernel: Array) -> Array:
    space = "HW"[: len(geometry.size)]
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=geometry.groups,
    )


_METHODS = {"patches": _patches, "winograd": _winograd, "native": _native}
