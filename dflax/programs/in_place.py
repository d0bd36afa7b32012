"""Maps whose results take the places of what they were made of, a row or a block at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array


def map_in_place(one: Callable[[Any], Any], stacked: Any) -> Any:
    """`jax.lax.map(one, stacked)` that writes a new row over an old one of its shape and dtype.

    The results of a map lie beside what it reads: all clients' state twice. Here they lie in its place.
    What a later operation reads of the old rows the compiler copies, so it never takes more memory.

    Args:
      one: of a row.
      stacked: leaves `[m, ...]`, m >= 1.
    """
    return scan_in_place(lambda carried, row: (carried, one(row)), (), stacked)[1]


def scan_in_place(
    one: Callable[[Any, Any], tuple[Any, Any]], start: Any, stacked: Any
) -> tuple[Any, Any]:
    """`jax.lax.scan(one, start, stacked)` that writes as `map_in_place` does.

    Args:
      one: `(carried, row) -> (carried, result)`.
      start: what is carried into the first turn.
      stacked: leaves `[m, ...]`, m >= 1.

    Returns:
      What the last turn carries, and the results, leaves `[m, ...]`.
    """
    given, structure = jax.tree.flatten(stacked)
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked)
    made, form = jax.tree.flatten(jax.eval_shape(one, start, first)[1])
    free = list(range(len(given)))
    over: dict[int, int] = {}
    for result, new in enumerate(made):
        for place in free:
            old = given[place]
            if (old.shape[1:], old.dtype) == (new.shape, new.dtype):
                over[result] = place
                free.remove(place)
                break

    def body(carrying: tuple[Any, dict[int, Array]], turn: tuple[Array, dict[int, Array]]) -> Any:
        (own, carried), (number, others) = carrying, turn
        carried = {place: _as_given(leaf) for place, leaf in carried.items()}
        rows = {
            place: jax.lax.dynamic_index_in_dim(leaf, number, 0, keepdims=False)
            for place, leaf in carried.items()
        }
        # Read before anything is written: a read later in the turn would need a copy of all rows.
        rows = jax.lax.optimization_barrier(jax.tree.map(_as_given, rows))
        row = jax.tree.unflatten(structure, [(rows | others)[i] for i in range(len(given))])
        own, result = one(own, row)
        found = jax.tree.leaves(result)
        carried = {
            place: jax.lax.dynamic_update_index_in_dim(carried[place], found[result], number, 0)
            for result, place in over.items()
        }
        return (own, carried), {i: leaf for i, leaf in enumerate(found) if i not in over}

    count = jnp.arange(given[0].shape[0])
    begun = (start, {place: given[place] for place in over.values()})
    (last, end), others = jax.lax.scan(body, begun, (count, {i: given[i] for i in free}))
    results = {result: end[place] for result, place in over.items()} | others
    return last, jax.tree.unflatten(form, [results[i] for i in range(len(made))])


def _as_given(leaf: Array) -> Array:
    """The array in the layout of a program's arguments.

    A convolution would have its kernels in another one, and the compiler then all rows in it, copied.
    Keys have no layout, and of complex numbers TPUs' compiler knows no constraint. Where devices share a
    model nothing is asked for: to give an array a layout the compiler gathers its shards.
    """
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) or jnp.iscomplexobj(leaf):
        return leaf
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    if any(size > 1 and kind != jax.sharding.AxisType.Manual for size, kind in kinds):
        return leaf
    return with_layout_constraint(leaf, Layout(tuple(range(leaf.ndim))))


def blocks_in_place(function: Callable[[Array], Array], x: Array, axis: int, width: int) -> Array:
    """`function(x)` for one that takes each index of an axis for itself, a block of them at a time.

    The result takes the place of x, if nothing else reads x later, and temporaries are those of a block.
    An axis longer than numbers of 32 bits reach is taken whole.

    Args:
      function: from any block of x to one of its shape and dtype.
      x: an array.
      axis: of x.
      width: of a block, >= 1; what is left at the end is a block of its own.
    """
    if x.shape[axis] > jnp.iinfo(jnp.int32).max:
        return function(x)
    count = x.shape[axis] // width

    def at(x: Array, start: Any, width: int) -> Array:
        made = function(jax.lax.dynamic_slice_in_dim(x, start, width, axis))
        return jax.lax.dynamic_update_slice_in_dim(x, made, start, axis)

    def one(x: Array, number: Array) -> tuple[Array, None]:
        return at(x, number * width, width), None

    x, _ = jax.lax.scan(one, x, jnp.arange(count))
    rest = x.shape[axis] - count * width
    return at(x, count * width, rest) if rest else x
