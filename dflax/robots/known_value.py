"""A number that some robots know, and the others want to."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.robots.application import Application, Claims, Estimate, Robot, Statement, origins


def known_value(
    observers: Bool[AnyArray, " n"],
    *,
    value: float | Float[Array, ""],
    lie: float | Float[Array, ""],
    tolerance: float | Float[Array, ""] = 1.0,
) -> Application:
    """Observers know a number and claim it; the others take the mean of the claims they keep.

    An observer suspects a claim that is farther than `tolerance` from the number.

    Args:
      observers: `[n]` booleans, who knows the number.
      value: the number.
      lie: what Byzantine robots claim.
      tolerance: > 0.

    Returns:
      An `Application`; a claim and an estimate are one number `[1]`. The estimate of a robot that is no
      observer and keeps no claim is not valid.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.array("observers", observers, kind="boolean", shape=("n",))
    validation.real("value", value, scalar=True)
    validation.real("lie", lie, scalar=True)
    validation.real("tolerance", tolerance, low=0.0, low_open=True, scalar=True)
    knows, true = jnp.asarray(given), jnp.asarray(value, jnp.float32)
    wrong = jnp.asarray(lie, jnp.float32)

    def start(robot: Robot) -> tuple[tuple[()], Estimate]:
        knowing = knows[robot.number]
        return (), Estimate(jnp.where(knowing, true, 0.0)[None], knowing)

    def observe(robot: Robot) -> tuple[Any, Statement]:
        return robot.memory, Statement(knows[robot.number], true[None])

    def tell(robot: Robot, honest: Statement) -> Statement:
        return Statement(jnp.ones((), bool), wrong[None])

    def accuse(robot: Robot, claims: Claims) -> Int[Array, " n"]:
        off = jnp.abs(claims.value[:, 0] - true) > tolerance
        return origins(off & knows[robot.number])

    def estimate(robot: Robot, claims: Claims) -> tuple[Any, Estimate]:
        count = claims.there.sum()
        mean = jnp.where(claims.there, claims.value[:, 0], 0.0).sum() / jnp.maximum(count, 1)
        knowing = knows[robot.number]
        return (), Estimate(jnp.where(knowing, true, mean)[None], knowing | (count > 0))

    def error(robot: Robot, value: Float[Array, "1"]) -> Float[Array, ""]:
        return jnp.abs(value[0] - true)

    return Application(start, observe, tell, accuse, estimate, error, lambda value, age: value)
