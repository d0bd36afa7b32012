"""What the matrix products of a gradient take alone: the least that a round of them can take here."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measure import milliseconds
from dflax.kernels.wall import wall
from dflax.programs import walk


def alone(gradient: Callable[..., Any], *args: Any, times: int) -> dict[str, Any]:
    """Milliseconds of all products of `gradient(*args)`, so many times in turn, as a row's peer.

    Those of one gradient wait for none of each other, and nothing else is computed but a number that
    lets the next ones wait for them, and is added to the smaller factor of each. What comes before and
    after them in a real gradient, and that most of them need another's result, is left out.

    Args:
      gradient: a function of pytrees of arrays.
      *args: arrays, or their shapes and dtypes.
      times: gradients in turn.
    """
    found = of(jax.make_jaxpr(gradient)(*args))
    keys = jax.random.split(jax.random.key(0), len(found))
    factors = [
        tuple(
            jax.random.normal(key, factor.shape, factor.dtype) for factor in walk.operands(product)
        )
        for key, product in zip(keys, found, strict=True)
    ]

    def once(number: jax.Array, _: None) -> tuple[jax.Array, None]:
        total = jnp.float32(0)
        for product, (left, right) in zip(found, given, strict=True):
            # By the number, or the compiler would take out of the loop what never changes.
            if left.size < right.size:
                left = wall(left + number)
            else:
                right = wall(right + number)
            total += wall(walk.bind(product, left, right)[0]).ravel()[0]
        return 1e-30 * total, None

    given: list[Any] = []

    def all_of_them(factors: list[Any]) -> jax.Array:
        given[:] = factors
        return jax.lax.scan(once, jnp.float32(0), None, length=times)[0]

    program = jax.jit(all_of_them)
    return {"peer": "its products alone", "ms": milliseconds(lambda: program(factors), repeats=5)}


def of(program: Any) -> list[Any]:
    """Every product of a program, those of a loop as often as it turns, on a CPU."""
    found: list[Any] = []
    for operation in program.eqns:
        if operation.primitive is jax.lax.dot_general_p:
            found.append(operation)
        for number, part in enumerate(walk.inner(operation)):
            if walk.chosen_by_platform(operation) and number != _of_a_cpu(operation):
                continue
            found += part.times * of(part.program.jaxpr)
    return found


def _of_a_cpu(operation: Any) -> int:
    platforms = operation.params["branches_platforms"]
    return next(n for n, names in enumerate(platforms) if names is None or "cpu" in names)
