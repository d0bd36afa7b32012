"""Work on `[m, d]` a block of columns at a time, so that a block stays in the cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

# Columns that LLVM takes at once, several times over: other widths can run at a fifth of the speed.
VECTOR = 256


def map_columns(
    function: Callable[[Float[Array, "m c"]], Float[Array, "... c"]],
    values: Float[Array, "m d"],
    width: int,
) -> Float[Array, "... d"]:
    """`out[..., j] = function(values)[..., j]` for a function that takes each column for itself.

    Every block is computed in a branch of a conditional that is always taken: what is outside cannot be
    fused with it. XLA would else compute the function again for every client that reads the result,
    and fails to vectorise large functions whose result is written in place.

    Args:
      function: `[m, c] -> [..., c]` for any c.
      values: `[m, d]`.
      width: columns of a block, at most.

    Returns:
      `[..., d]`.
    """
    rows, columns = values.shape
    # XLA removes a loop of one turn, and the conditional with it. Blocks are of whole vectors.
    width = min(width, -(-columns // 2))
    width = max(1, width - width % VECTOR if width > VECTOR else width)
    count = max(1, -(-columns // width))
    block = jax.ShapeDtypeStruct((rows, width), values.dtype)
    made = jax.eval_shape(function, block)

    def compute(number: Array, values: Array) -> Array:
        return function(jax.lax.dynamic_slice_in_dim(values, start_of(number), width, axis=1))

    def start_of(number: Array) -> Array:
        # The last block begins early enough to be whole, and computes some columns again.
        return jnp.minimum(number * width, columns - width)

    def work(number: Array, out: Array) -> Array:
        found = jax.lax.cond(
            number < count, compute, lambda *_: jnp.zeros(made.shape, made.dtype), number, values
        )
        return jax.lax.dynamic_update_slice_in_dim(out, found, start_of(number), axis=-1)

    out = jnp.zeros((*made.shape[:-1], columns), made.dtype)
    return jax.lax.fori_loop(0, count, work, out)


def sum_columns(
    function: Callable[..., PyTree[Array]], values: Float[Array, "m d"], *along: Array, width: int
) -> PyTree[Array]:
    """The sum of `function(block, *blocks)` over blocks of columns, of `values` and of `along`.

    Args:
      function: `([m, c], *[..., c]) -> arrays` for any c, additive over columns.
      values: `[m, d]`.
      *along: further arrays with d columns.
      width: columns of a block; the last one has what is left.
    """
    arrays = (values, *along)
    columns = values.shape[1]
    count = columns // width
    total = None
    if count:

        def work(number: Array, total: PyTree[Array]) -> PyTree[Array]:
            cut = (
                jax.lax.dynamic_slice_in_dim(array, number * width, width, axis=-1)
                for array in arrays
            )
            return jax.tree.map(jnp.add, total, function(*cut))

        parts = (jax.ShapeDtypeStruct((*a.shape[:-1], width), a.dtype) for a in arrays)
        made = jax.eval_shape(function, *parts)
        zeros = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), made)
        total = jax.lax.fori_loop(0, count, work, zeros)
    if columns % width or total is None:
        rest = function(*(array[..., count * width :] for array in arrays))
        total = rest if total is None else jax.tree.map(jnp.add, total, rest)
    return total
