"""Axes of arrays as products of sets of units, and which of these sets have to be one and the same."""

import math
from typing import TypeAlias

Factor: TypeAlias = int
Axis: TypeAlias = tuple[Factor, ...]
Axes: TypeAlias = tuple[Axis, ...]


class Factors:
    """What is known of the axes of a program's arrays.

    An axis is a product of factors in row-major order, each of them a set of units. Two factors that a
    program ties (the axis of a product over which it sums, two arrays that it adds) are united; one
    that is read partly (a reshape) is split into two; one whose units are not interchangeable (pixels,
    classes, an axis that is sliced) is fixed, and so is everything united with it. What is not fixed
    at the end may be permuted, everywhere at once, and every array of the program is permuted with it.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.parents: list[Factor] = []
        self.parts: list[Axis] = []
        self.fixed: list[bool] = []

    def axis(self, size: int, fixed: bool = False) -> Axis:
        """A new axis of that length, one factor; of length 1 none."""
        return () if size == 1 else (self._new(size, fixed),)

    def axes(self, shape: tuple[int, ...], fixed: bool = False) -> Axes:
        """New axes for an array of that shape."""
        return tuple(self.axis(size, fixed) for size in shape)

    def resolve(self, axis: Axis) -> Axis:
        """The factors that an axis consists of by now."""
        found: list[Factor] = []
        for factor in axis:
            root = self._root(factor)
            found += self.resolve(self.parts[root]) if self.parts[root] else (root,)
        return tuple(found)

    def fix(self, *axes: Axis) -> None:
        """Declares that the units of these axes are not interchangeable."""
        for axis in axes:
            for factor in self.resolve(axis):
                self.fixed[factor] = True

    def unite(self, first: Axis, second: Axis) -> None:
        """Declares that two axes of the same length list the same units in the same order."""
        a, b = self.resolve(first), self.resolve(second)
        while a and b:
            x, y = a[0], b[0]
            if x == y or self.sizes[x] == self.sizes[y]:
                self._join(x, y)
                a, b = a[1:], b[1:]
            elif not self._split_longer(x, y):
                self.fix(a, b)
                return
            a, b = self.resolve(a), self.resolve(b)

    def reshape(self, axes: Axes, shape: tuple[int, ...]) -> Axes:
        """The axes of an array in another shape of the same size."""
        rest = self.resolve(tuple(factor for axis in axes for factor in axis))
        found: list[Axis] = []
        for place, size in enumerate(shape):
            taken: Axis = ()
            while math.prod(self.sizes[factor] for factor in taken) < size:
                wanted = size // math.prod(self.sizes[factor] for factor in taken)
                if self.sizes[rest[0]] > wanted and not self._split(rest[0], wanted):
                    self.fix(rest, taken)
                    return (*found, *self.axes(shape[place:], fixed=True))
                rest = self.resolve(rest)
                taken, rest = (*self.resolve(taken), rest[0]), rest[1:]
            if math.prod(self.sizes[factor] for factor in taken) != size:
                self.fix(rest, taken)
                return (*found, *self.axes(shape[place:], fixed=True))
            found.append(taken)
        return tuple(found)

    def split(self, axis: Axis, first: int) -> tuple[Axis, Axis]:
        """An axis as the product of one of length `first` and the rest."""
        size = math.prod(self.sizes[factor] for factor in self.resolve(axis))
        one, other = self.reshape((axis,), (first, size // first))
        return one, other

    def _new(self, size: int, fixed: bool) -> Factor:
        self.sizes.append(size)
        self.parents.append(len(self.parents))
        self.parts.append(())
        self.fixed.append(fixed)
        return len(self.sizes) - 1

    def _root(self, factor: Factor) -> Factor:
        while self.parents[factor] != factor:
            factor = self.parents[factor]
        return factor

    def _join(self, x: Factor, y: Factor) -> None:
        if x != y:
            self.parents[y] = x
            self.fixed[x] = self.fixed[x] or self.fixed[y]

    def _split(self, factor: Factor, first: int) -> bool:
        size, fixed = self.sizes[factor], self.fixed[factor]
        if size % first:
            return False
        self.parts[factor] = (self._new(first, fixed), self._new(size // first, fixed))
        return True

    def _split_longer(self, x: Factor, y: Factor) -> bool:
        longer, shorter = (x, y) if self.sizes[x] > self.sizes[y] else (y, x)
        return self._split(longer, self.sizes[shorter])
