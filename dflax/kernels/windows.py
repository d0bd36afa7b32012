"""The maximum and the sum of every window by slices of the array, differentiable cheaply."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from dflax.kernels.wall import wall

Sizes = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]

# More entries make a long program, and their numbers must fit into a byte.
LARGEST_WINDOW = 64


def max_of_windows(
    x: Float[Array, "..."], window: Sizes, strides: Sizes, pads: Pads
) -> Float[Array, "..."] | None:
    """The maximum of every window, one size, stride and pair of pads per axis of x; padded with -inf.

    None for windows of more than 64 entries, which are better left to `lax.reduce_window`.
    """
    if math.prod(window) > LARGEST_WINDOW:
        return None
    return wall(_max(window, strides, _covered(x, window, strides, pads, -math.inf)))


def sum_of_windows(
    x: Float[Array, "..."], window: Sizes, strides: Sizes, pads: Pads
) -> Float[Array, "..."] | None:
    """The sum of every window; otherwise as `max_of_windows`, padded with zeros."""
    if math.prod(window) > LARGEST_WINDOW:
        return None
    return wall(_sum(window, strides, _covered(x, window, strides, pads, 0.0)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _max(window: Sizes, strides: Sizes, x: Array) -> Array:
    return functools.reduce(jnp.maximum, _entries(window, strides, x))


@_max.defjvp
def _max_jvp(
    window: Sizes, strides: Sizes, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (direction,) = primals, tangents
    largest = _max(window, strides, x)
    entries = _entries(window, strides, x)
    # One byte per window is all that the reverse rule has to remember.
    first = jnp.full(largest.shape, len(entries) - 1, jnp.int8)
    for place in reversed(range(len(entries) - 1)):
        first = jnp.where(entries[place] == largest, jnp.int8(place), first)
    first = wall(first)
    if window != strides:  # windows that overlap, or leave gaps
        chosen = [
            jnp.where(first == place, entry, 0)
            for place, entry in enumerate(_entries(window, strides, direction))
        ]
        return largest, functools.reduce(jnp.add, chosen)
    places = jnp.arange(len(entries), dtype=jnp.int8).reshape(_interleaved((1,) * x.ndim, window))
    hits = jnp.expand_dims(first, _inner_axes(x)) == places
    return largest, jnp.sum(jnp.where(hits, _tiles(window, direction), 0), axis=_inner_axes(x))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _sum(window: Sizes, strides: Sizes, x: Array) -> Array:
    return functools.reduce(jnp.add, _entries(window, strides, x))


@_sum.defjvp
def _sum_jvp(
    window: Sizes, strides: Sizes, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (direction,) = primals, tangents
    total = _sum(window, strides, x)
    if window != strides:
        return total, functools.reduce(jnp.add, _entries(window, strides, direction))
    return total, jnp.sum(_tiles(window, direction), axis=_inner_axes(x))


def _entries(window: Sizes, strides: Sizes, x: Array) -> list[Array]:
    """For every place in the window, in row-major order, what all windows hold there."""
    outer = [(n - w) // s + 1 for n, w, s in zip(x.shape, window, strides, strict=True)]
    return [
        lax.slice(
            x,
            place,
            [p + s * (o - 1) + 1 for p, s, o in zip(place, strides, outer, strict=True)],
            strides,
        )
        for place in np.ndindex(*window)
    ]


def _covered(x: Array, window: Sizes, strides: Sizes, pads: Pads, fill: float) -> Array:
    """The padded array without what no window covers."""
    if any(pad != (0, 0) for pad in pads):
        x = jnp.pad(x, pads, constant_values=fill)
    ends = [(n - w) // s * s + w for n, w, s in zip(x.shape, window, strides, strict=True)]
    return lax.slice(x, [0] * x.ndim, ends)


def _tiles(window: Sizes, x: Array) -> Array:
    """`[o_0, w_0, o_1, w_1, ...]`: every axis by tile and by place within the tile."""
    outer = tuple(n // w for n, w in zip(x.shape, window, strict=True))
    return x.reshape(_interleaved(outer, window))


def _interleaved(first: Sizes, second: Sizes) -> Sizes:
    return tuple(size for pair in zip(first, second, strict=True) for size in pair)


def _inner_axes(x: Array) -> Sizes:
    return tuple(range(1, 2 * x.ndim, 2))
