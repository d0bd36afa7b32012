"""Pooling by slices, which is faster than a window reduction inside loops and under a client axis."""

import math
from collections.abc import Sequence
from typing import Literal

from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from dflax import validation
from dflax.kernels.windows import Pads, Sizes, max_of_windows, sum_of_windows

Padding = Literal["SAME", "VALID"]


def max_pool(
    inputs: Float[Array, "*B C"],
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Float[Array, "*B C"]:
    """y[b, p, c] = max over t in the window of x[b, strides p + t - low, c], as `flax.linen.max_pool`.

    Windows of up to 64 entries are compared entry by entry, strided slices of the inputs; larger ones
    go to `lax.reduce_window`. Either way the gradient goes to the first maximum of a window in
    row-major order, as in flax.

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
    pads = _pads(inputs, window, strides, padding)
    pooled = max_of_windows(inputs, _whole(inputs, window), _whole(inputs, strides), pads)
    return nn.max_pool(inputs, window, strides, padding) if pooled is None else pooled


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
    pads = _pads(inputs, window, strides, padding)
    total = sum_of_windows(inputs, _whole(inputs, window), _whole(inputs, strides), pads)
    if total is None:
        return nn.avg_pool(inputs, window, strides, padding)
    return total / math.prod(window)


def _whole(x: Array, entries: Sizes) -> Sizes:
    """Sizes for every axis, given those of space: batch and channels are not pooled."""
    return (1,) * (x.ndim - 1 - len(entries)) + entries + (1,)


def _pads(x: Array, window: Sizes, strides: Sizes, padding: str) -> Pads:
    window, strides = _whole(x, window), _whole(x, strides)
    return tuple(lax.padtype_to_pads(x.shape, window, strides, padding))


def _window(
    inputs: Array, window_shape: Sequence[int], strides: Sequence[int] | None, padding: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    window = tuple(validation.sequence("window_shape", window_shape, "integers", least=0))
    if strides is None:
        strides = (1,) * len(window)
    strides = tuple(validation.sequence("strides", strides, "integers", least=0))
    for name, entries in (("window_shape", window), ("strides", strides)):
        for entry in entries:
            validation.integer(name, entry, low=1)
    if len(strides) != len(window):
        raise ValueError(f"strides must have {len(window)} entries, got {strides}.")
    if not window or inputs.ndim < len(window) + 1:
        raise ValueError(
            f"inputs must have {len(window)} >= 1 axes of space before the channels, got shape "
            f"{inputs.shape} for window_shape {validation.shown(window)}."
        )
    validation.choice("padding", padding, ("SAME", "VALID"))
    space = inputs.shape[-len(window) - 1 : -1]
    if padding == "VALID" and any(w > n for n, w in zip(space, window, strict=True)):
        raise ValueError(
            f"window_shape must fit into the inputs' space {space} without padding, got {window}. Pool "
            "less often, take a smaller window or padding='SAME'."
        )
    return window, strides
