"""A plan for every hypothesis, and the guess that planning starts from."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.robots.planning.bernstein import Curves
from dflax.robots.planning.scene import Scene, Start


class Trajectory(NamedTuple):
    """Coefficients of x, y and the heading, `[S, n+1]` over hypotheses, and the speed at all times.

    Attributes:
      x: in metres.
      y: in metres.
      heading: in rad.
      speed: `[S, Nt]`, m/s.
    """

    x: Float[Array, "S n+1"]
    y: Float[Array, "S n+1"]
    heading: Float[Array, "S n+1"]
    speed: Float[Array, "S Nt"]


def guessed(guess: Any, curves: Curves, hypotheses: int) -> Trajectory:
    """The guess as arrays, after all checks."""
    validation.instance("params", guess, Trajectory, "For example straight_guess(curves, scene).")
    kind = jnp.result_type(float)
    made = []
    for name, width in zip(
        Trajectory._fields, (*[curves.degree + 1] * 3, curves.steps), strict=True
    ):
        shape = (hypotheses, width)
        given = validation.array(f"params.{name}", getattr(guess, name), kind="real", shape=shape)
        made.append(jnp.asarray(given, kind))
    return Trajectory(*made)


def straight_guess(curves: Curves, scene: Scene) -> Trajectory:
    """Straight ahead at the speed of the start, drifting to the wanted y; a plan's guess.

    Args:
      curves: of `bernstein`.
      scene: a `Scene`, of which the start and the wanted y are read.

    Returns:
      A `Trajectory` for every hypothesis.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("curves", curves, Curves, "For example dflax.robots.bernstein().")
    validation.instance("scene", scene, Scene, "See dflax.robots.Scene.")
    start: Start = scene.start
    share = jnp.arange(curves.degree + 1) / curves.degree
    lateral = jnp.asarray(scene.lateral)
    one = jnp.ones_like(lateral)[:, None]
    speed = jnp.linalg.norm(jnp.asarray(start.velocity))
    first = jnp.asarray(start.position)
    return Trajectory(
        one * (first[0] + share * speed * curves.duration),
        first[1] + share * (lateral[:, None] - first[1]),
        one * jnp.asarray(start.heading) * jnp.ones(curves.degree + 1),
        one * speed * jnp.ones(curves.steps),
    )
