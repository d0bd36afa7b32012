"""Convolutions and poolings of any function replaced by faster ones, without touching its source."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives
from jaxtyping import Array

from dflax import validation
from dflax.kernels.correlation import Geometry, as_products
from dflax.kernels.windows import LARGEST_WINDOW, max_of_windows, sum_of_windows
from dflax.programs.rewriting import rewrite
from dflax.programs.walk import Operation, bind, chosen_by_platform, operands, results

Replacement = Callable[..., list[Array]]


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
    of accumulation, and what runs in `shard_map` are left as they are.

    Args:
      function: any function of pytrees. Arrays among its arguments are traced, everything else
        (flags, None, strings, Python numbers) reaches it as it is.

    Returns:
      A function of the same arguments and results.

    Raises:
      TypeError: `function` cannot be called.
    """
    validation.function("function", function, "Pass a loss or a model's apply.")
    return rewrite(function, _replacement)


def _replacement(operation: Operation) -> Replacement | None:
    if chosen_by_platform(operation):
        # The choice has been made already, by `dflax.models.Conv` for example.
        return functools.partial(bind, operation)
    rule = _RULES.get(operation.primitive)
    return None if rule is None else rule(operation)


def geometry_of(operation: Operation) -> Geometry | None:
    """The facts of a convolution that `dflax.kernels.correlation` can compute; None for others."""
    options, (x, kernel), (result,) = operation.params, operands(operation), results(operation)
    numbers = options["dimension_numbers"]
    size = tuple(kernel.shape[axis] for axis in numbers.rhs_spec[2:])
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
        return None
    return Geometry(
        size,
        tuple(options["window_strides"]),
        tuple(options["padding"]),
        tuple(options["rhs_dilation"]),
        options["feature_group_count"],
        tuple(result.shape[axis] for axis in numbers.out_spec[2:]),
    )


def _convolution(operation: Operation) -> Replacement | None:
    geometry, numbers = geometry_of(operation), operation.params["dimension_numbers"]
    if geometry is None:
        return None

    def products(x: Array, kernel: Array) -> list[Array]:
        # Specifications list batch or outputs, channels, then space.
        batch, channels, *space = numbers.lhs_spec
        features, inner, *taps = numbers.rhs_spec
        outputs = as_products(
            geometry,
            x.transpose(batch, *space, channels),
            kernel.transpose(*taps, inner, features),
        )
        batch, channels, *space = numbers.out_spec
        return [outputs.transpose(np.argsort([batch, *space, channels]))]

    return _on_cpu(products, operation)


def _windows(pool: Callable[..., Any], operation: Operation) -> Replacement | None:
    options, (x,), (result,) = operation.params, operands(operation), results(operation)
    window, strides = tuple(options["window_dimensions"]), tuple(options["window_strides"])
    pads = tuple(options["padding"])
    covered = (
        set(options["base_dilation"]) == {1} == set(options["window_dilation"])
        and all(low >= 0 and high >= 0 for low, high in pads)
        and jnp.issubdtype(x.dtype, jnp.floating)
        and math.prod(window) <= LARGEST_WINDOW
        and 0 not in result.shape
    )
    return _on_cpu(lambda x: [pool(x, window, strides, pads)], operation) if covered else None


def _on_cpu(replacement: Replacement, operation: Operation) -> Replacement:
    return functools.partial(
        lax.platform_dependent, cpu=replacement, default=functools.partial(bind, operation)
    )


_RULES: dict[Any, Callable[[Operation], Replacement | None]] = {
    primitives.conv_general_dilated_p: _convolution,
    primitives.reduce_window_max_p: functools.partial(_windows, max_of_windows),
    primitives.reduce_window_sum_p: functools.partial(_windows, sum_of_windows),
}
