"""A function with some of its operations replaced, wherever they stand in it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import primitives
from jaxtyping import Array

from dflax.programs.walk import CALLS, Operation, Program, bind, evaluate, fold, written_at

Rule = Callable[[Operation], Callable[..., Sequence[Array]] | None]

ENTERED = CALLS | {primitives.scan_p, primitives.while_p, primitives.cond_p}


def rewrite(function: Callable[..., Any], rule: Rule) -> Callable[..., Any]:
    """The same function, each operation carried out by what a rule has for it.

    The function is traced once per call. The programs of loops, branches, calls, checkpoints and
    functions with derivatives of their own, and the rules of these derivatives, are rewritten alike.
    What runs in `shard_map` is left as it is.

    Args:
      function: any function of pytrees. Arrays among its arguments are traced, everything else
        (flags, None, strings, Python numbers) reaches it as it is.
      rule: `operation -> (*inputs) -> results`, or None for an operation that stays.

    Returns:
      A function of the same arguments and results.
    """

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
        program = jax.make_jaxpr(of_arrays)(*arrays)
        carry_out = functools.partial(_carry_out, rule) if _concerns(rule, program) else bind
        computed = iter(evaluate(program, arrays, carry_out))
        results = [next(computed) if static is None else static[0] for static in kept]
        return jax.tree.unflatten(result_tree, results)

    return rewritten


def traced_once(function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], Any]:
    """A function as the program that it is for such arguments, and the shapes of its results.

    Its Python runs here and never again, however often the program is batched or laid into another.

    Args:
      function: any function of pytrees of arrays that returns one.
      *args: arrays, or their shapes and dtypes.

    Returns:
      The function of arguments of these shapes, and its results as `jax.ShapeDtypeStruct`s.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)

    def again(*args: Any) -> Any:
        results = evaluate(program, jax.tree.leaves(args), bind)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return again, shapes


def _carry_out(rule: Rule, operation: Operation, *inputs: Any) -> Sequence[Any]:
    replacement = rule(operation)
    if replacement is not None:
        with written_at(operation):
            return replacement(*inputs)
    if operation.primitive not in ENTERED:
        return bind(operation, *inputs)

    def changed(program: Program) -> Program:
        if not _concerns(rule, program):
            return program

        def again(*inputs: Array) -> list[Array]:
            return evaluate(program, inputs, functools.partial(_carry_out, rule))

        return jax.make_jaxpr(again)(*program.in_avals)

    derivatives = functools.partial(rewrite, rule=rule)
    return bind(operation, *inputs, programs=changed, derivatives=derivatives)


def _concerns(rule: Rule, program: Program) -> bool:
    """Whether anything is replaced in a program; relu, for example, stays one call."""

    def visit(operation: Operation, inside: list[bool]) -> bool:
        # Rules of differentiation may hold what their function does not.
        ruled = operation.primitive is primitives.custom_vjp_call_p
        return (
            ruled or rule(operation) is not None or (any(inside) and operation.primitive in ENTERED)
        )

    return fold(program, visit, any)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))
