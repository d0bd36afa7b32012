"""Weights that a loss only multiplies by or convolves with, whose gradients are products of rows.

Of y = x W the gradient on one example is the outer product of x and the gradient d of y. Its length is
|x| |d|, and a weighted sum over examples is one product of matrices, so nothing of the size of W is
made for every example ("ghost norms"). `jax_privacy` 2.0 and `optax` make every gradient. The rows of a
convolution are what its outputs see of x. Where examples have many rows, lengths from the rows alone
would cost more than the gradients: these are then made, each as one product.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import primitives
from jaxtyping import Array, Float

from dflax.privacy.convolved import Convolution
from dflax.programs.convolutions import geometry_of
from dflax.programs.walk import (
    Operation,
    Program,
    bind,
    called,
    chosen_by_platform,
    evaluate,
    inner,
    operands,
    results,
)


class Weight(NamedTuple):
    """What stands for a leaf of the params while a program is walked through.

    Attributes:
      leaf: its number.
      value: its array.
    """

    leaf: int
    value: Any


class Product(NamedTuple):
    """Where a weight is multiplied, in the program of one example.

    Attributes:
      shape: of the product.
      dtype: of the product.
      place: which operand the weight is, 0 or 1.
      contracted: the axis of the other operand over which the sum goes.
      own: the axis of the weight over which the sum goes, 0 or 1.
    """

    shape: tuple[int, ...]
    dtype: Any
    place: int
    contracted: int
    own: int

    @property
    def other(self) -> int:
        """Which operand the weight is multiplied with."""
        return 1 - self.place

    def rows(self, other: Float[Array, "B ..."]) -> Float[Array, "B T in"]:
        """What the weight is multiplied by, of all examples."""
        last = jnp.moveaxis(other, self.contracted + 1, -1)
        return last.reshape(last.shape[0], -1, last.shape[-1])

    def gradients(self, seen: Float[Array, "B ..."]) -> Float[Array, "B T out"]:
        """The gradient of the product, of all examples."""
        last = seen if self.place == 1 else jnp.moveaxis(seen, 1, -1)
        return last.reshape(last.shape[0], -1, last.shape[-1])

    def laid(self, gradients: Float[Array, "*B in out"]) -> Array:
        """Gradients of the weight in its own shape."""
        return gradients if self.own == 0 else jnp.swapaxes(gradients, -2, -1)


Ghost = Product | Convolution


def products(program: Program, leaves: int) -> dict[int, Ghost]:
    """The leaves, among the first inputs of a program, that take part in one product and nothing else.

    Of matrices, only those of which products of the examples' rows are cheaper than their gradients.
    """
    found: dict[int, list[Ghost | None]] = {leaf: [] for leaf in range(leaves)}

    def visit(operation: Operation, *inputs: Any) -> Sequence[Any]:
        given = [value for value in inputs if isinstance(value, Weight)]
        if given and operation.primitive is primitives.jit_p:
            return walked(called(operation), inputs)
        if given and operation.primitive is primitives.convert_element_type_p:
            return [Weight(given[0].leaf, None)]
        for weight in given:
            found[weight.leaf].append(
                _product(operation, inputs) or _convolution(operation, inputs)
            )
        return [None] * len(operation.outvars)

    def walked(program: Any, inputs: Sequence[Any]) -> Sequence[Any]:
        return evaluate(program, inputs, visit, constant=lambda value: None)

    rest = [None] * (len(program.in_avals) - leaves)
    returned = walked(program, [*(Weight(leaf, None) for leaf in range(leaves)), *rest])
    for value in returned:
        if isinstance(value, Weight):
            found[value.leaf].append(None)
    return {leaf: uses[0] for leaf, uses in found.items() if len(uses) == 1 and uses[0] is not None}


def multiplied(
    program: Program,
    leaves: Sequence[Array],
    rest: Sequence[Array],
    ghosts: Mapping[int, Ghost],
    probes: Mapping[int, Array],
) -> tuple[list[Array], dict[int, Array]]:
    """The results of a program, with a probe added to some products, and what they were products with.

    The gradient with respect to a probe is that of the product.
    """
    others: dict[int, Array] = {}

    def carry_out(operation: Operation, *inputs: Any) -> Sequence[Any]:
        places = [n for n, value in enumerate(inputs) if isinstance(value, Weight)]
        if places and operation.primitive is primitives.jit_p:
            inner: Any = called(operation)
            return evaluate(inner, inputs, carry_out)
        bare = [value.value if isinstance(value, Weight) else value for value in inputs]
        computed = bind(operation, *bare)
        if not places:
            return computed
        leaf = inputs[places[0]].leaf
        if operation.primitive is primitives.convert_element_type_p:
            return [Weight(leaf, computed[0])]
        others[leaf] = bare[ghosts[leaf].other]
        return [computed[0] + probes[leaf]]

    inputs: list[Any] = [
        Weight(leaf, value) if leaf in probes else value for leaf, value in enumerate(leaves)
    ]
    return evaluate(program, [*inputs, *rest], carry_out), others


def squares(rows: Float[Array, "B T in"], gradients: Float[Array, "B T out"]) -> Float[Array, " B"]:
    """`|sum_t x_jt d_jt|^2` of every example j, in float32 or wider, from products of its rows alone."""
    if rows.shape[1] == 1:
        return _squared(rows) * _squared(gradients)
    inputs, outputs = (
        jnp.einsum("jsi,jti->jst", leaf, leaf, preferred_element_type=_wide(leaf))
        for leaf in (rows, gradients)
    )
    # Rounding must not make a length of a square below 0.
    return jnp.maximum(jnp.sum(inputs * outputs, axis=(1, 2)), 0)


def total(
    product: Ghost,
    rows: Float[Array, "B T in"],
    gradients: Float[Array, "B T out"],
    factors: Float[Array, " B"],
    there: Array,
) -> Float[Array, "..."]:
    """The sum over examples of a weight's gradients times their factors; the others may hold NaN."""
    here = there[:, None, None]
    kept = jnp.where(here, rows, 0)
    scaled = jnp.where(here, gradients * factors[:, None, None].astype(gradients.dtype), 0)
    if isinstance(product, Product) and product.own == 1:
        return jnp.einsum("jti,jto->oi", kept, scaled, preferred_element_type=_wide(rows))
    summed = jnp.einsum("jti,jto->io", kept, scaled, preferred_element_type=_wide(rows))
    return product.laid(summed)


def _product(operation: Operation, inputs: Sequence[Any]) -> Product | None:
    if operation.primitive is not primitives.dot_general_p:
        return None
    place = next(n for n, value in enumerate(inputs) if isinstance(value, Weight))
    contracted, batched = operation.params["dimension_numbers"]
    weight, other = (operands(operation)[n] for n in (place, 1 - place))
    two = isinstance(inputs[1 - place], Weight)
    if two or weight.ndim != 2 or batched[0] or len(contracted[0]) != 1:
        return None
    own, its = contracted[place][0], contracted[1 - place][0]
    length, width = weight.shape[own], weight.shape[1 - own]
    count = other.size // length
    if count > 1 and count * (length + width) >= length * width:
        return None
    (result,) = results(operation)
    return Product(result.shape, result.dtype, place, its, own)


def _convolution(operation: Operation, inputs: Sequence[Any]) -> Convolution | None:
    """Of a convolution, or of a choice by platform among ways to compute one."""
    first = int(chosen_by_platform(operation))
    ways = [part.program.jaxpr for part in inner(operation)] if first else []
    named = [way.eqns[0] for way in ways if len(way.eqns) == 1 and _all_of(way)]
    convolution = named[0] if named else operation
    is_one = convolution.primitive is primitives.conv_general_dilated_p
    if not is_one or isinstance(inputs[first], Weight) or not isinstance(inputs[first + 1], Weight):
        return None
    geometry, numbers = geometry_of(convolution), convolution.params["dimension_numbers"]
    if geometry is None or geometry.groups > 1:
        return None
    (result,), kernel = results(operation), operands(convolution)[1].shape
    layouts = tuple(map(tuple, (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)))
    return Convolution(result.shape, result.dtype, first, geometry, layouts, kernel)


def _all_of(way: Any) -> bool:
    """Whether the only operation of a program has the program's operands and result."""
    operation = way.eqns[0]
    return operation.invars == way.invars and operation.outvars == way.outvars


def _squared(rows: Float[Array, "B T d"]) -> Float[Array, " B"]:
    return jnp.sum(jnp.square(rows.astype(_wide(rows))), axis=(1, 2))


def _wide(leaf: Array) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)
