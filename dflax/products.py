"""Matrix products of many clients at once, in the order in which XLA multiplies them fast on a CPU."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array, PyTree


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

    def rewritten(*arguments: PyTree[Array]) -> PyTree[Array]:
        traced, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if not _holds_one(traced.jaxpr):
            return function(*arguments)
        out = _evaluate(traced.jaxpr, traced.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return rewritten


def _is_slow(equation: Any) -> bool:
    """A batched product over one axis that is not the left factor's last."""
    if equation.primitive.name != "dot_general":
        return False
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    rank = equation.invars[0].aval.ndim
    # XLA's own layout of the batch axes is kept: they lead wherever vmap put them.
    leading = tuple(batch) == tuple(range(len(batch)))
    return bool(batch) and leading and len(contracted) == 1 and contracted[0] != rank - 1


def _holds_one(program: Jaxpr) -> bool:
    return any(
        _is_slow(equation) or any(map(_holds_one, _programs(equation.params)))
        for equation in program.eqns
    )


def _programs(parameters: dict[str, Any]) -> list[Jaxpr]:
    """The bodies of loops, branches and calls, if they are closed."""
    found = []
    for value in parameters.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, ClosedJaxpr):
                found.append(part.jaxpr)
    return found


def _evaluate(program: Jaxpr, constants: list[Any], arguments: list[Any]) -> list[Any]:
    values: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    values |= zip((*program.constvars, *program.invars), (*constants, *arguments), strict=True)
    for equation in program.eqns:
        inputs = [read(variable) for variable in equation.invars]
        if _is_slow(equation):
            out = [_product(*inputs, **equation.params)]
        else:
            parameters = {name: _rebuilt(value) for name, value in equation.params.items()}
            bound = equation.primitive.get_bind_params(parameters)
            with equation.ctx.manager:
                out = equation.primitive.bind(*inputs, **bound)
            out = out if equation.primitive.multiple_results else [out]
        values |= zip(equation.outvars, out, strict=True)
    return [read(variable) for variable in program.outvars]


def _rebuilt(value: Any) -> Any:
    """A parameter of an operation, with the programs in it rewritten as well."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_rebuilt, value)) if type(value) in (tuple, list) else value
    if not isinstance(value, ClosedJaxpr) or not _holds_one(value.jaxpr):
        return value
    shapes = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type)
        for v in value.jaxpr.invars
    ]

    def evaluate(*arguments: Array) -> list[Array]:
        return _evaluate(value.jaxpr, value.consts, list(arguments))

    return jax.make_jaxpr(evaluate)(*shapes)


def _product(left: Array, right: Array, *, dimension_numbers: Any, **how: Any) -> Array:
    (contracted, others), batch = dimension_numbers
    last = left.ndim - 1
    order = [axis for axis in range(left.ndim) if axis != contracted[0]] + [contracted[0]]
    # Without the barriers XLA would fold the transposes into the product again.
    left = jax.lax.optimization_barrier(left.transpose(order))
    out = jax.lax.dot_general_p.bind(
        left, right, dimension_numbers=(((last,), others), batch), **how
    )
    return jax.lax.optimization_barrier(out)
