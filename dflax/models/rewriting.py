"""Convolutions and poolings of any function replaced by faster ones, without touching its source."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import linear_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, primitives
from jaxtyping import Array

from dflax import validation
from dflax.models.correlation import Geometry, as_products
from dflax.models.pooling import LARGEST_WINDOW, max_of_windows, sum_of_windows
from dflax.programs.walk import scan_operands


def rewrite_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its convolutions and poolings computed as `dflax.models` computes its own.

        loss = rewrite_convolutions(loss)                 (params, batch, key) -> (loss, metrics)
        apply = rewrite_convolutions(model.apply)         (params, x) -> y

    Rewrite before differentiation: then the reverse rules are those of slices and products as well.
    On CPU a linen, nnx or equinox model so becomes as fast as one of `dflax.models.Conv` and
    `max_pool`; on other platforms every operation stays what it was. Results agree to float32
    rounding, parameters and signature are the same, and the function stays differentiable in either
    mode and any order, vmappable and jittable.

    The function is traced once per call, so call it under `jax.jit`, as every algorithm here does.
    Rewritten are convolutions with one or two axes of space, any layout, strides, padding >= 0,
    kernel dilation and groups, and maxima and sums over windows of up to 64 entries, in the function
    itself and in what it calls: jit, checkpoint, scan, while, cond, custom derivatives and their
    rules. Transposed convolutions, three axes of space, negative padding, batch groups, other dtypes
    of accumulation, and what runs in `shard_map` or has been differentiated under `jax.checkpoint`
    are left as they are.

    Args:
      function: any function of pytrees. Arrays among its arguments are traced, everything else
        (flags, None, strings, Python numbers) reaches it as it is.

    Returns:
      A function of the same arguments and results.

    Raises:
      TypeError: `function` cannot be called.
    """
    validation.function("function", function, "Pass a loss or a model's apply.")

    @functools.wraps(function)
    def rewritten(*args: Any, **options: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, options))
        traced = [_is_array(leaf) for leaf in leaves]
        kept: list[Any] = []
        result_tree: Any = None

        def of_arrays(*arrays: Array) -> list[Array]:
            nonlocal result_tree
            rest = iter(arrays)
            filled = [
                next(rest) if is_array else leaf
                for is_array, leaf in zip(traced, leaves, strict=True)
            ]
            inner, named = jax.tree.unflatten(tree, filled)
            results, result_tree = jax.tree.flatten(function(*inner, **named))
            kept[:] = [None if _is_array(leaf) else (leaf,) for leaf in results]
            return [leaf for leaf in results if _is_array(leaf)]

        arrays = [leaf for leaf in leaves if _is_array(leaf)]
        closed = jax.make_jaxpr(of_arrays)(*arrays)
        computed = iter(_evaluate(closed, *arrays))
        results = [next(computed) if static is None else static[0] for static in kept]
        return jax.tree.unflatten(result_tree, results)

    return rewritten


def _evaluate(closed: ClosedJaxpr, *args: Any) -> list[Any]:
    """The results of a traced function, operation by operation, replaced where there is a rule."""
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        rule = _RULES.get(equation.primitive, _bind)
        inputs = [value(atom) for atom in equation.invars]
        with equation.ctx.manager:
            results = (rule if _concerns(equation) else _bind)(equation, *inputs)
        if not equation.primitive.multiple_results:
            results = [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _bind(equation: JaxprEqn, *inputs: Any) -> Any:
    """The operation as it is."""
    parameters = equation.primitive.get_bind_params(equation.params)
    return equation.primitive.bind(*inputs, **parameters)


def _convolution(equation: JaxprEqn, x: Array, kernel: Array) -> Array:
    options = equation.params
    numbers = options["dimension_numbers"]
    size = tuple(kernel.shape[axis] for axis in numbers.rhs_spec[2:])
    result: Any = equation.outvars[0].aval
    covered = (
        len(size) in (1, 2)
        and set(options["lhs_dilation"]) == {1}
        and options["batch_group_count"] == 1
        and all(low >= 0 and high >= 0 for low, high in options["padding"])
        and jnp.issubdtype(x.dtype, jnp.floating)
        and x.dtype == kernel.dtype == result.dtype
        and 0 not in (*x.shape, *kernel.shape, *result.shape)
    )
    if not covered:
        return _bind(equation, x, kernel)
    geometry = Geometry(
        size,
        tuple(options["window_strides"]),
        tuple(options["padding"]),
        tuple(options["rhs_dilation"]),
        options["feature_group_count"],
        tuple(result.shape[axis] for axis in numbers.out_spec[2:]),
    )

    def products(x: Array, kernel: Array) -> Array:
        # Specifications list batch or outputs, channels, then space.
        batch, channels, *space = numbers.lhs_spec
        features, inner, *taps = numbers.rhs_spec
        outputs = as_products(
            geometry,
            x.transpose(batch, *space, channels),
            kernel.transpose(*taps, inner, features),
        )
        batch, channels, *space = numbers.out_spec
        return outputs.transpose(np.argsort([batch, *space, channels]))

    native = functools.partial(_bind, equation)
    return lax.platform_dependent(x, kernel, cpu=products, default=native)


def _windows(pool: Callable[..., Array | None], equation: JaxprEqn, x: Array) -> Array:
    options = equation.params
    result: Any = equation.outvars[0].aval
    covered = (
        set(options["base_dilation"]) == {1} == set(options["window_dilation"])
        and all(low >= 0 and high >= 0 for low, high in options["padding"])
        and jnp.issubdtype(x.dtype, jnp.floating)
        and math.prod(options["window_dimensions"]) <= LARGEST_WINDOW
        and 0 not in result.shape
    )
    if not covered:
        return _bind(equation, x)
    window, strides = tuple(options["window_dimensions"]), tuple(options["window_strides"])
    pads = tuple(options["padding"])
    return lax.platform_dependent(
        x,
        cpu=lambda x: pool(x, window, strides, pads),
        default=functools.partial(_bind, equation),
    )


def _call(equation: JaxprEqn, *inputs: Any) -> Any:
    return _evaluate(_inner(equation)[0], *inputs)


def _checkpoint(equation: JaxprEqn, *inputs: Any) -> Any:
    options = equation.params
    if options["differentiated"]:
        return _bind(equation, *inputs)
    call = functools.partial(_evaluate, _inner(equation)[0])
    again = jax.checkpoint(call, prevent_cse=options["prevent_cse"], policy=options["policy"])
    return again(*inputs)


def _custom_derivatives(equation: JaxprEqn, *inputs: Any) -> Any:
    parameters = equation.primitive.get_bind_params(equation.params)
    function, *rules = parameters.pop("subfuns")
    call = functools.partial(_evaluate, _inner(equation)[0])
    subfunctions = [linear_util.wrap_init(call, debug_info=function.debug_info)]
    for rule in rules:
        derivative = rewrite_convolutions(rule.call_wrapped)
        subfunctions.append(linear_util.wrap_init(derivative, debug_info=rule.debug_info))
    return equation.primitive.bind(*inputs, subfuns=tuple(subfunctions), **parameters)


def _scan(equation: JaxprEqn, *inputs: Any) -> Any:
    options = equation.params
    constants, carried = scan_operands(equation)
    shared, start = inputs[:constants], inputs[constants : constants + carried]
    body = _inner(equation)[0]

    def step(carry: Any, rows: Any) -> tuple[Any, Any]:
        results = _evaluate(body, *shared, *carry, *rows)
        return tuple(results[:carried]), tuple(results[carried:])

    end, stacked = lax.scan(
        step,
        tuple(start),
        tuple(inputs[constants + carried :]),
        length=options["length"],
        reverse=options["reverse"],
        unroll=options["unroll"],
    )
    return [*end, *stacked]


def _while(equation: JaxprEqn, *inputs: Any) -> Any:
    options = equation.params
    asked = options["cond_nconsts"]
    shared = asked + options["body_nconsts"]

    def goes_on(carry: Any) -> Array:
        return _evaluate(options["cond_jaxpr"], *inputs[:asked], *carry)[0]

    def body(carry: Any) -> tuple[Any, ...]:
        return tuple(_evaluate(options["body_jaxpr"], *inputs[asked:shared], *carry))

    return lax.while_loop(goes_on, body, tuple(inputs[shared:]))


def _cond(equation: JaxprEqn, index: Array, *inputs: Any) -> Any:
    if equation.params.get("branches_platforms") is not None:
        # A choice by platform has been made already, by `dflax.models.Conv` for example.
        return _bind(equation, index, *inputs)
    branches = [functools.partial(_evaluate, branch) for branch in equation.params["branches"]]
    return lax.switch(index, branches, *inputs)


_RULES: dict[Any, Callable[..., Any]] = {
    primitives.conv_general_dilated_p: _convolution,
    primitives.reduce_window_max_p: functools.partial(_windows, max_of_windows),
    primitives.reduce_window_sum_p: functools.partial(_windows, sum_of_windows),
    primitives.jit_p: _call,
    primitives.closed_call_p: _call,
    primitives.call_p: _call,
    primitives.remat_p: _checkpoint,
    primitives.custom_jvp_call_p: _custom_derivatives,
    primitives.custom_vjp_call_p: _custom_derivatives,
    primitives.scan_p: _scan,
    primitives.while_p: _while,
    primitives.cond_p: _cond,
}
_LEAVES = {
    primitives.conv_general_dilated_p,
    primitives.reduce_window_max_p,
    primitives.reduce_window_sum_p,
}


def _concerns(equation: JaxprEqn) -> bool:
    """Whether anything is replaced in an operation; relu, for example, stays one call."""
    if equation.primitive in _LEAVES:
        return True
    if equation.primitive not in _RULES:
        return False
    if equation.primitive is primitives.custom_vjp_call_p:
        return True  # its rules may convolve although it does not
    return any(_concerns(inner) for closed in _inner(equation) for inner in closed.jaxpr.eqns)


def _inner(equation: JaxprEqn) -> Sequence[ClosedJaxpr]:
    """The functions that an operation calls."""
    found = []
    for parameter in equation.params.values():
        several = parameter if isinstance(parameter, (tuple, list)) else (parameter,)
        for entry in several:
            if isinstance(entry, ClosedJaxpr):
                found.append(entry)
            elif isinstance(entry, Jaxpr):
                found.append(ClosedJaxpr(entry, ()))
    return found


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))
