"""Pooling by reshape, which is faster than a window reduction inside loops and under a client axis."""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dflax import validation

Padding = Literal["SAME", "VALID"]


def max_pool(
    inputs: Float[Array, "*B C"],
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Float[Array, "*B C"]:
    """y[b, p, c] = max over t in the window of x[b, strides p + t - low, c], as `flax.linen.max_pool`.

    Windows that tile the inputs are reshaped and reduced; others go to `lax.reduce_window`. Either
    way the gradient goes to the first maximum of a window in row-major order, as in flax.

    Args:
      inputs: `[..., *space, C]` with as many axes of space as `window_shape` has entries.
      window_shape: positive lengths of the window.
      strides: positive distances between windows; None means 1 everywhere, as in flax.
      padding: "VALID" drops what does not fill a window, "SAME" pads with minus infinity.

    Returns:
      `[..., *outer_space, C]`.

    Raises:
      TypeError: entries that are not integers.
      ValueError: entries that are not positive, too few axes, an unknown padding, or a
        window larger than the inputs without padding.
    """
    window, strides = _window(inputs, window_shape, strides, padding)
    if _tiles(inputs, window, strides):
        return _max_of_tiles(len(window), _split(inputs, window))
    return nn.max_pool(inputs, window, strides, padding)


def avg_pool(
    inputs: Float[Array, "*B C"],
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Float[Array, "*B C"]:
    """y[b, p, c] = mean over t in the window of x[b, strides p + t - low, c], as `flax.linen.avg_pool`.

    Padded positions count as zeros. Arguments, result and errors are those of `max_pool`.
    """
    window, strides = _window(inputs, window_shape, strides, padding)
    if _tiles(inputs, window, strides):
        return jnp.mean(_split(inputs, window), axis=_within(len(window)))
    return nn.avg_pool(inputs, window, strides, padding)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _max_of_tiles(dimensions: int, tiles: Array) -> Array:
    return jnp.max(tiles, axis=_within(dimensions))


@_max_of_tiles.defjvp
def _max_of_tiles_jvp(
    dimensions: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (tiles,), (direction,) = primals, tangents
    axes = _within(dimensions)
    largest = _max_of_tiles(dimensions, tiles)
    window = [size if axis - tiles.ndim in axes else 1 for axis, size in enumerate(tiles.shape)]
    count = math.prod(window)
    places = jnp.arange(count, dtype=jnp.int32).reshape(window)
    hits = jnp.where(tiles == jnp.expand_dims(largest, axes), places, count)
    first = places == jnp.min(hits, axis=axes, keepdims=True)
    return largest, jnp.sum(jnp.where(first, direction, 0), axis=axes)


def _within(dimensions: int) -> tuple[int, ...]:
    """Axes inside a tile, counted from the end: tiles are `[..., outer, window, ..., C]`."""
    return tuple(range(-2 * dimensions, -1, 2))


def _split(inputs: Array, window: tuple[int, ...]) -> Array:
    batch, space = inputs.shape[: -len(window) - 1], inputs.shape[-len(window) - 1 : -1]
    tiles = [part for n, w in zip(space, window, strict=True) for part in (n // w, w)]
    return inputs.reshape(*batch, *tiles, inputs.shape[-1])


def _tiles(inputs: Array, window: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    space = inputs.shape[-len(window) - 1 : -1]
    return window == strides and all(n % w == 0 for n, w in zip(space, window, strict=True))


def _window(
    inputs: Array, window_shape: Sequence[int], strides: Sequence[int] | None, padding: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    window = tuple(window_shape)
    strides = (1,) * len(window) if strides is None else tuple(strides)
    for name, entries in (("window_shape", window), ("strides", strides)):
        for entry in entries:
            validation.integer(name, entry, low=1)
    if len(strides) != len(window):
        raise ValueError(f"strides must have {len(window)} entries, got {strides}.")
    if not window or inputs.ndim < len(window) + 1:
        raise ValueError(
            f"inputs must have {len(window)} >= 1 axes of space before the channels, got shape "
            f"{inputs.shape} for window_shape {window}."
        )
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"padding must be 'SAME' or 'VALID', got {padding!r}.")
    space = inputs.shape[-len(window) - 1 : -1]
    if padding == "VALID" and any(w > n for n, w in zip(space, window, strict=True)):
        raise ValueError(
            f"window_shape must fit into the inputs' space {space} without padding, got {window}. Pool "
            "less often, take a smaller window or padding='SAME'."
        )
    return window, strides
