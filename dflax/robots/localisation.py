"""Cooperative localisation: anchors know where they are, and radio reaches only so far."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.robots.application import Application, Claims, Estimate, Robot, Statement, origins
from dflax.robots.boxes import centre, intersection


def localisation(
    anchors: Bool[AnyArray, " n"],
    *,
    radio: float | Float[Array, ""] = 4.0,
    robot_speed: float | Float[Array, ""] = 0.05,
    period: int = 1,
    lie_by: float | Float[Array, ""] = 20.0,
) -> Application:
    """Anchors claim their places; every robot lies in a box around each of them.

    A claim of the place p that took `delay` ticks, and so at most as many hops, and is `age` ticks old
    says of the robot that keeps it, at s, on each axis

        |s - p| <= delay radio + age robot_speed.

    The estimate is the centre of the intersection of these boxes, claim by claim in the order of their
    origins, without those that would leave nothing. Anchors accuse the origin of a claim whose box they
    are not in. A Byzantine robot claims its own place plus U(-lie_by, lie_by)^2.

    The claims that robots of the paper make from the boxes of others carry the anchor's claim that they
    rest on, which is the one that is tested; here the anchor's claim itself is passed on.

    Args:
      anchors: `[n]` booleans, who knows its place.
      radio: how far radio reaches, as in the swarm, in metres, > 0.
      robot_speed: the robots' longest way in a tick, in metres, >= 0.
      period: ticks between a robot's claims, >= 1.
      lie_by: bound of the Byzantine error on each axis, in metres, >= 0.

    Returns:
      An `Application`; a claim and an estimate are places `[2]`. Estimates of anchors are exact.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.array("anchors", anchors, kind="boolean", shape=("n",))
    validation.real("radio", radio, low=0.0, low_open=True, scalar=True)
    validation.real("robot_speed", robot_speed, low=0.0, scalar=True)
    validation.integer("period", period, low=1)
    validation.real("lie_by", lie_by, low=0.0, scalar=True)
    knows = jnp.asarray(given)

    def start(robot: Robot) -> tuple[tuple[()], Estimate]:
        return (), Estimate(robot.position, knows[robot.number])

    def observe(robot: Robot) -> tuple[Any, Statement]:
        says = knows[robot.number] & (robot.tick % period == 0)
        return robot.memory, Statement(says, robot.position)

    def lie(robot: Robot, honest: Statement) -> Statement:
        error = lie_by * jax.random.uniform(robot.key, (2,), minval=-1.0)
        return Statement(robot.tick % period == 0, robot.position + error)

    def reach(claims: Claims) -> Float[Array, "n 1"]:
        return (claims.delay * radio + claims.age * robot_speed)[:, None]

    def accuse(robot: Robot, claims: Claims) -> Int[Array, " n"]:
        # Sums of float32 on both sides: an honest claim at the very edge shall not be doubted.
        apart = jnp.abs(claims.value - robot.position)
        outside = jnp.any(apart > reach(claims) * (1 + 1e-5) + 1e-5, axis=-1)
        return origins(outside & knows[robot.number])

    def estimate(robot: Robot, claims: Claims) -> tuple[Any, Estimate]:
        others = claims.there & (jnp.arange(claims.there.shape[0]) != robot.number)
        half = reach(claims)
        low, high = intersection(claims.value - half, claims.value + half, others)
        anywhere, valid = centre(low, high, jnp.inf)
        anchor = knows[robot.number]
        found = jnp.where(anchor, robot.position, anywhere)
        return robot.memory, Estimate(found, valid | anchor)

    def error(robot: Robot, value: Float[Array, "2"]) -> Float[Array, ""]:
        return jnp.linalg.norm(value - robot.position)

    return Application(start, observe, lie, accuse, estimate, error, lambda value, age: value)
