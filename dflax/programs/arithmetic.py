"""The arithmetic of a traced program, loops multiplied out; XLA's own count takes their bodies once."""

import math

import jax.numpy as jnp

from dflax.programs.walk import Operation, Program, fold, inner, operands, results

# Operations that move numbers without computing any.
MOVES = frozenset(
    """
    all_gather all_to_all bitcast_convert_type broadcast_in_dim concatenate convert_element_type copy
    device_put dynamic_slice dynamic_update_slice gather iota name optimization_barrier pad ppermute
    reshape rev scatter select_n sharding_constraint slice sort split squeeze stack stop_gradient
    transpose unstack
    """.split()  # noqa: SIM905
)


def operations(program: Program) -> float:
    """Floating-point operations: 2 for a product and its addition, 1 for every other elementwise result.

    A loop of unknown length counts once, and so does the dearest branch of a conditional.

    Args:
      program: traced.
    """
    return fold(program, _of_one, math.fsum)


def _of_one(operation: Operation, inside: list[float]) -> float:
    """Of an operation, given those of the programs inside it."""
    name = operation.primitive.name
    if inside:
        each = [part.times * flops for part, flops in zip(inner(operation), inside, strict=True)]
        return max(each) if name == "cond" else sum(each)
    entries = sum(
        math.prod(result.shape)
        for result in results(operation)
        if jnp.issubdtype(getattr(result, "dtype", jnp.int32), jnp.inexact)
    )
    if not entries or name in MOVES:
        return 0.0
    if name == "dot_general":
        (contracted, _), _ = operation.params["dimension_numbers"]
        left = operands(operation)[0]
        return 2.0 * entries * math.prod(left.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = operands(operation)[1]
        features = kernel.shape[operation.params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * entries * math.prod(kernel.shape) / features
    if name.startswith(("reduce", "scatter")):
        # What is added up counts: the operand, or the updates.
        added = operands(operation)[2 if name.startswith("scatter") else 0]
        return float(math.prod(added.shape))
    return float(entries)
