"""Point robots that move in a box, and who is within reach of whose radio."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dflax import validation

# Neighbours count as near up to this multiple of the distance at which they repel each other.
NEAR = 1.8


class Motion(NamedTuple):
    """How robots move; make one with `motion`.

    Attributes:
      side: of the box [-side/2, side/2]^2 in metres.
      speed: the longest way of a tick in metres.
      turning: the standard deviation of a wandering robot's turn in a tick, in radians.
      repulsion: strength with which near robots repel each other, in square metres a tick.
      distance: below which they do, in metres.
      pursuit: whether robots with a valid estimate go to it, as to a position (static).
    """

    side: float | Float[Array, ""]
    speed: float | Float[Array, ""]
    turning: float | Float[Array, ""]
    repulsion: float | Float[Array, ""]
    distance: float | Float[Array, ""]
    pursuit: bool


def motion(
    speed: float | Float[Array, ""],
    *,
    side: float | Float[Array, ""] = 10.0,
    turning: float | Float[Array, ""] = 0.2,
    repulsion: float | Float[Array, ""] = 0.0067,
    distance: float | Float[Array, ""] = 1.25,
    pursuit: bool = False,
) -> Motion:
    """Robots that wander in a box, or go where they think the target is, and keep apart.

        way = speed u + 2 mean_j min(0, -(g / d_j) ((T / d_j)^4 - (T / d_j)^2)) u_j,    at most `speed`

    u is the direction of the robot, u_j and d_j direction and distance of those nearer than 1.8 T. A
    robot that meets a wall stops there and turns round.

    Args:
      speed: of a tick, in metres, >= 0; 0 stands still.
      side: of the box [-side/2, side/2]^2, in metres, > 0.
      turning: standard deviation of the turn in a tick, in radians, >= 0.
      repulsion: g >= 0, in square metres a tick.
      distance: T > 0, in metres.
      pursuit: whether a robot with a valid estimate, which must then be a position, goes to it.

    Returns:
      A `Motion`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("speed", speed, low=0.0, scalar=True)
    validation.real("side", side, low=0.0, low_open=True, scalar=True)
    validation.real("turning", turning, low=0.0, scalar=True)
    validation.real("repulsion", repulsion, low=0.0, scalar=True)
    validation.real("distance", distance, low=0.0, low_open=True, scalar=True)
    validation.flag("pursuit", pursuit)
    return Motion(side, speed, turning, repulsion, distance, pursuit)


def scattered(
    key: Key[Array, ""], robots: int, *, side: float | Float[Array, ""] = 10.0
) -> Float[Array, "n 2"]:
    """Positions drawn uniformly from the box [-side/2, side/2]^2.

    Args:
      key: a typed key.
      robots: n >= 1.
      side: of the box, in metres, > 0.

    Returns:
      `[n, 2]` positions, to start a swarm from.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    validation.integer("robots", robots, low=1)
    validation.real("side", side, low=0.0, low_open=True, scalar=True)
    return side * (jax.random.uniform(key, (robots, 2)) - 0.5)


def within(
    position: Float[Array, "2"], others: Float[Array, "n 2"], reach: float | Array
) -> Bool[Array, " n"]:
    """Which of the others are no farther away than `reach`, the robot itself among them."""
    return jnp.sum(jnp.square(others - position), axis=-1) <= jnp.square(reach)


def moved(
    motion: Motion,
    position: Float[Array, "2"],
    heading: Float[Array, ""],
    goal: Float[Array, " e"],
    valid: Bool[Array, ""],
    others: Float[Array, "n 2"],
    key: Key[Array, ""],
) -> tuple[Float[Array, "2"], Float[Array, ""]]:
    """Position and heading of one robot a tick later."""
    heading = heading + motion.turning * jax.random.normal(key)
    direction = jnp.stack([jnp.cos(heading), jnp.sin(heading)])
    way = motion.speed * direction
    if motion.pursuit:
        ahead = goal - position
        distance = jnp.linalg.norm(ahead)
        straight = ahead * jnp.minimum(motion.speed / jnp.maximum(distance, 1e-9), 1.0)
        way = jnp.where(valid, straight, way)
    way = way + 2.0 * _push(motion, position, others)
    length = jnp.linalg.norm(way)
    way = way * jnp.minimum(1.0, motion.speed / jnp.maximum(length, 1e-9))
    wall = 0.5 * motion.side
    after = position + way
    meets = jnp.any(jnp.abs(after) > wall)
    return jnp.clip(after, -wall, wall), jnp.where(meets, heading + jnp.pi, heading)


def _push(
    motion: Motion, position: Float[Array, "2"], others: Float[Array, "n 2"]
) -> Float[Array, "2"]:
    """The mean repulsion of those that are near; robots on one spot do not repel each other."""
    apart = others - position
    squared = jnp.sum(jnp.square(apart), axis=-1)
    near = (squared > 0) & (squared < jnp.square(NEAR * motion.distance))
    squared = jnp.maximum(squared, 1e-6)
    ratio = jnp.square(motion.distance) / squared
    force = jnp.minimum(0.0, -motion.repulsion * (jnp.square(ratio) - ratio) / squared)
    total = jnp.sum(jnp.where(near[:, None], force[:, None] * apart, 0.0), axis=0)
    return total / jnp.maximum(near.sum(), 1)
