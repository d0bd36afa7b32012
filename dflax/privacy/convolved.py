"""A kernel that a loss convolves with, and its gradients on single examples."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from dflax.kernels.correlation import Geometry, receptive_fields, winograd_pays
from dflax.kernels.kernel_gradients import kernel_gradients


class Convolution(NamedTuple):
    """Where a weight is the kernel of a convolution, in the program of one example.

    Attributes:
      shape: of the result.
      dtype: of the result.
      other: which operand is convolved.
      geometry: of the convolution, for channels that come last.
      layouts: of inputs, kernel and result: batch or outputs, channels, then space.
      kernel: shape of the kernel.
    """

    shape: tuple[int, ...]
    dtype: Any
    other: int
    geometry: Geometry
    layouts: tuple[tuple[int, ...], ...]
    kernel: tuple[int, ...]

    @property
    def row_numbers(self) -> tuple[int, int, int]:
        """How many rows an example has, and the lengths of theirs and of their gradients."""
        features = self.kernel[self.layouts[1][0]]
        return math.prod(self.shape) // features, math.prod(self.kernel) // features, features

    @property
    def by_rows(self) -> bool:
        """Whether products of the rows are cheaper than the gradients."""
        count, length, width = self.row_numbers
        return count * (length + width) < length * width

    @property
    def numbers_held(self) -> int:
        """Of patches and gradients, for every example."""
        count, length, width = self.row_numbers
        channels = length // math.prod(self.geometry.size), width
        by_tiles = winograd_pays(self.geometry, 1, channels, self.dtype)
        patches = 0 if by_tiles and not self.by_rows else count * length
        return patches + (0 if self.by_rows else length * width)

    def rows(self, other: Float[Array, "B ..."]) -> Float[Array, "B T in"]:
        """What the outputs of all examples see."""
        seen = receptive_fields(self.geometry, _flat(_channels_last(other, self.layouts[0])))
        return seen.reshape(other.shape[0], -1, seen.shape[-1])

    def gradients(self, seen: Float[Array, "B ..."]) -> Float[Array, "B T out"]:
        """The gradient of the result, of all examples."""
        last = _channels_last(seen, self.layouts[2])
        return last.reshape(last.shape[0], -1, last.shape[-1])

    def each(self, other: Float[Array, "B ..."], seen: Float[Array, "B ..."]) -> Array:
        """The gradients of the kernel on all examples."""
        ends = (
            _flat(_channels_last(leaf, layout))
            for leaf, layout in zip((other, seen), self.layouts[::2], strict=True)
        )
        found = kernel_gradients(self.geometry, *ends)
        whole = found.reshape(other.shape[0], -1, *found.shape[1:]).sum(1)
        return self.laid(whole)

    def laid(self, gradients: Float[Array, "*B in out"]) -> Array:
        """Gradients of the kernel in its own shape."""
        features, channels, *taps = self.layouts[1]
        order = [*taps, channels, features]
        lead = gradients.shape[:-2]
        apart = gradients.reshape(*lead, *(self.kernel[axis] for axis in order))
        places = [len(lead) + place for place in np.argsort(order)]
        return apart.transpose(*range(len(lead)), *places)


def _channels_last(stacked: Array, layout: tuple[int, ...]) -> Array:
    """`[B, b, *space, channels]` of `[B, ...]` in a layout."""
    batch, channels, *space = layout
    return stacked.transpose(0, *(axis + 1 for axis in (batch, *space, channels)))


def _flat(stacked: Array) -> Array:
    return stacked.reshape(-1, *stacked.shape[2:])
