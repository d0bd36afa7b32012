"""Target tracking: who sees the target tells where it is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.robots.application import Application, Claims, Estimate, Robot, Statement, origins
from dflax.robots.boxes import centre, intersection

# No side of a box whose centre is an estimate is longer, in metres.
WIDEST = 10.0
# How far a Byzantine robot claims the target to be from itself, on both axes.
OUTWARD = 0.25


def target_tracking(
    target: Callable[[Int[Array, ""]], Float[Array, "2"]],
    *,
    radio: float | Float[Array, ""] = 4.0,
    camera: float | Float[Array, ""] = 0.8885,
    target_speed: float | Float[Array, ""] = 0.5,
    robot_speed: float | Float[Array, ""] = 0.5,
    noise: float | Float[Array, ""] = 0.0,
) -> Application:
    """Robots that see the target claim where it is; the others estimate it from claims.

    A claim of the place p, made D ticks ago, comes to a robot at s, d = |s - p|. It is suspicious where
    it travelled faster than flooding, where the robot would see the target, or where it sees it:

        D (radio + robot_speed) + camera + noise < d
        not seen:  d < camera - target_speed D - noise
        seen:      d > camera + target_speed D + noise

    These are sound: no honest claim is suspicious where the speeds and the noise are bounds. The
    estimate is the centre of the intersection of [p - v D, p + v D], v = target_speed, claim by claim in
    the order of their origins, without those that would leave nothing; it is valid if no side is 10 m
    long. A Byzantine robot claims 0.25 m outward of its own place on both axes, at every tick.

    Args:
      target: `tick -> [2]`, where the target is at a tick.
      radio: how far radio reaches, as in the swarm, in metres, > 0.
      camera: how far a robot sees, in metres, > 0.
      target_speed: the target's longest way in a tick, in metres, >= 0.
      robot_speed: the robots' longest way in a tick, in metres, >= 0.
      noise: the largest error of an honest claim, in metres, >= 0; errors are uniform in a disc.

    Returns:
      An `Application`; a claim and an estimate are places `[2]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.function("target", target, "It gives the place [2] at a tick.", takes=1)
    validation.real("radio", radio, low=0.0, low_open=True, scalar=True)
    validation.real("camera", camera, low=0.0, low_open=True, scalar=True)
    validation.real("target_speed", target_speed, low=0.0, scalar=True)
    validation.real("robot_speed", robot_speed, low=0.0, scalar=True)
    validation.real("noise", noise, low=0.0, scalar=True)

    def where(tick: Array) -> Float[Array, "2"]:
        place = jnp.asarray(target(tick), jnp.float32)
        if place.shape != (2,):
            raise ValueError(f"target(tick) must have shape (2,), got {place.shape}.")
        return place

    def sees(robot: Robot) -> Bool[Array, ""]:
        return jnp.sum(jnp.square(robot.position - where(robot.tick))) <= jnp.square(camera)

    def start(robot: Robot) -> tuple[tuple[()], Estimate]:
        return (), Estimate(jnp.zeros(2), jnp.zeros((), bool))

    def observe(robot: Robot) -> tuple[Any, Statement]:
        radius, angle = jax.random.uniform(robot.key, (2,)) * jnp.array([1.0, 2 * jnp.pi])
        error = noise * jnp.sqrt(radius) * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return robot.memory, Statement(sees(robot), where(robot.tick) + error)

    def lie(robot: Robot, honest: Statement) -> Statement:
        outward = jnp.where(robot.position < 0, -OUTWARD, OUTWARD)
        return Statement(jnp.ones((), bool), robot.position + outward)

    def accuse(robot: Robot, claims: Claims) -> Int[Array, " n"]:
        distance = jnp.linalg.norm(claims.value - robot.position, axis=-1)
        travelled = target_speed * claims.age + noise
        too_fast = claims.delay * (radio + robot_speed) + camera + noise < distance
        seen = distance > camera + travelled
        unseen = distance < camera - travelled
        return origins(too_fast | jnp.where(sees(robot), seen, unseen))

    def estimate(robot: Robot, claims: Claims) -> tuple[Any, Estimate]:
        half = (target_speed * claims.age + noise)[:, None]
        box = intersection(claims.value - half, claims.value + half, claims.there)
        return robot.memory, Estimate(*centre(*box, WIDEST))

    def error(robot: Robot, value: Float[Array, "2"]) -> Float[Array, ""]:
        return jnp.linalg.norm(value - where(robot.tick))

    return Application(start, observe, lie, accuse, estimate, error, lambda value, age: value)


def circling(
    radius: float | Float[Array, ""], step: float | Float[Array, ""]
) -> Callable[[Int[Array, ""]], Float[Array, "2"]]:
    """A target that goes round the centre on a circle, for `target_tracking`.

    Args:
      radius: of the circle in metres, > 0.
      step: way along the circle in a tick, in metres.

    Returns:
      `tick -> [2]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("radius", radius, low=0.0, low_open=True, scalar=True)
    validation.real("step", step, scalar=True)

    def place(tick: Int[Array, ""]) -> Float[Array, "2"]:
        angle = step / radius * tick
        return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    return place
