"""Matrix products of many clients at once, in the order in which XLA multiplies them fast on a CPU."""

from collections.abc import Callable

import jax
from jaxtyping import Array, PyTree

from dflax.programs.rewriting import rewrite
from dflax.programs.walk import Operation, bind, operands


def contract_last(function: Callable[..., PyTree[Array]]) -> Callable[..., PyTree[Array]]:
    """The same function with every batched product `sum_b y[.., b, k] x[.., b, d]` as `y^T x`.

    XLA's CPU backend hands a batched product to its fast kernels only if the left factor is contracted
    over its last axis; any other becomes plain loops. The gradient of a layer's weights, `g^T x`, is of
    the other kind as soon as clients are vmapped. Here the function is traced, and evaluated with each
    such left factor transposed in memory beforehand; loops and branches inside are treated alike. The
    values are the same up to the order of sums.

    Args:
      function: of pytrees of arrays, free of effects.

    Returns:
      A function of the same arguments. One without such products is called as it is.
    """
    return rewrite(function, _transposed)


def _transposed(operation: Operation) -> Callable[[Array, Array], list[Array]] | None:
    """The product of a factor that is transposed; None unless it is batched, over one other axis."""
    if operation.primitive is not jax.lax.dot_general_p:
        return None
    (contracted, others), (batch, paired) = operation.params["dimension_numbers"]
    last = operands(operation)[0].ndim - 1
    # XLA's own layout of the batch axes is kept: they lead wherever vmap put them.
    leading = tuple(batch) == tuple(range(len(batch)))
    if not batch or not leading or len(contracted) != 1 or contracted[0] == last:
        return None
    order = [axis for axis in range(last + 1) if axis != contracted[0]] + [contracted[0]]
    numbers = (((last,), others), (batch, paired))
    product = operation.replace(params=operation.params | {"dimension_numbers": numbers})

    def multiply(left: Array, right: Array) -> list[Array]:
        # Without the barriers XLA would fold the transposes into the product again.
        left = jax.lax.optimization_barrier(left.transpose(order))
        return [jax.lax.optimization_barrier(out) for out in bind(product, left, right)]

    return multiply
