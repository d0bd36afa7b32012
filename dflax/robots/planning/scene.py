"""What a plan is made for: where the car is, what it may meet, what it wants and must keep to."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.robots.planning.barrier import VOID


class Start(NamedTuple):
    """Where the car is when it plans.

    Attributes:
      position: `[2]` metres; x along the road, y across.
      velocity: `[2]` m/s, not 0, so that its direction is known.
      heading: `[]` rad.
      turning: `[]` rad/s.
    """

    position: Float[Array, " 2"]
    velocity: Float[Array, " 2"]
    heading: Float[Array, ""]
    turning: Float[Array, ""]


class Scene(NamedTuple):
    """What may be on the road, hypothesis by hypothesis.

    Attributes:
      start: the car.
      centres: `[S, M, 2, Nt]`, predicted centres of obstacles.
      axes: `[S, M, 2, Nt]`, half axes of their safety ellipses along x and y, in metres; 0 for an
        obstacle that a hypothesis does not have.
      speed: `[S]` wanted speed along x, m/s.
      lateral: `[S]` wanted y, which is also where the plan ends.
    """

    start: Start
    centres: Float[Array, "S M 2 Nt"]
    axes: Float[Array, "S M 2 Nt"]
    speed: Float[Array, " S"]
    lateral: Float[Array, " S"]


class Costs(NamedTuple):
    """Weights of the squared deviations, >= 0; traceable.

    Attributes:
      acceleration: w_s, of x'' and y''.
      turning: w_psi, of the heading's second derivative.
      speed: w_v, of x' from the wanted speed.
      lateral: w_y, of y from the wanted one, after the shared segment.
    """

    acceleration: float | Array = 100.0
    turning: float | Array = 150.0
    speed: float | Array = 50.0
    lateral: float | Array = 100.0


class Limits(NamedTuple):
    """Boxes on position, velocity, acceleration and jerk, in metres and seconds; traceable.

    Attributes:
      x: `[4, 2]`, least and greatest, of x and its derivatives.
      y: `[4, 2]`.
      speed: > 0, the greatest.
    """

    x: Any = ((-1e4, 1e4), (0.0, 10.0), (-4.0, 3.0), (-6.0, 6.0))
    y: Any = ((-6.0, 6.0), (-4.0, 4.0), (-2.0, 2.0), (-6.0, 6.0))
    speed: float | Array = 10.0


def require_limits(limits: Any) -> None:
    """Refuses what are no limits, and limits that cross."""
    validation.instance("limits", limits, Limits, "For example dflax.robots.Limits().")
    for name in ("x", "y"):
        fix = "Least and greatest of position, velocity, acceleration and jerk."
        box = getattr(limits, name)
        if not any(map(validation.is_traced, jax.tree.leaves(box))):
            given = validation.array(f"limits.{name}", box, kind="real", shape=(4, 2), fix=fix)
            low, high = np.asarray(given, np.float64).T
            if np.any(low >= high):
                raise ValueError(
                    f"limits.{name} must have least values below the greatest, got "
                    f"{validation.shown(np.asarray(given).tolist())}."
                )
    validation.real("limits.speed", limits.speed, low=0.0, low_open=True, scalar=True)


def require_costs(costs: Any) -> None:
    """Refuses what are no costs, and negative ones."""
    validation.instance("costs", costs, Costs, "For example dflax.robots.Costs().")
    for name, value in costs._asdict().items():
        validation.real(f"costs.{name}", value, low=0.0, scalar=True)


def placed(scene: Any, hypotheses: int, steps: int, limits: Limits) -> Scene:
    """The scene as arrays, after all checks; boundary conditions that no plan meets are refused."""
    validation.instance("scene", scene, Scene, "See dflax.robots.Scene.")
    validation.instance("scene.start", scene.start, Start, "See dflax.robots.Start.")
    many: tuple[int | str, ...] = (hypotheses, "M", 2, steps)
    wanted: dict[str, tuple[int | str, ...]] = {
        "start.position": (2,),
        "start.velocity": (2,),
        "start.heading": (),
        "start.turning": (),
        "centres": many,
        "axes": many,
        "speed": (hypotheses,),
        "lateral": (hypotheses,),
    }
    kind = jnp.result_type(float)
    found = {}
    for name, shape in wanted.items():
        owner: Any = scene.start if name.startswith("start") else scene
        low = 0.0 if name in ("axes", "speed") else -np.inf
        value = getattr(owner, name.removeprefix("start."))
        given = validation.array(f"scene.{name}", value, kind="real", shape=shape, low=low)
        found[name] = jnp.asarray(given, kind)
    if found["axes"].shape != found["centres"].shape:
        raise ValueError(
            f"scene.axes must have the shape of scene.centres, {found['centres'].shape}, got "
            f"{found['axes'].shape}."
        )
    start = Start(*(found[f"start.{name}"] for name in Start._fields))
    made = Scene(start, *(found[name] for name in Scene._fields[1:]))
    if not any(map(validation.is_traced, found.values())):
        _feasible(made, limits)
    return made


def _feasible(scene: Scene, limits: Limits) -> None:
    """Refuses starts and ends that break the limits or lie in an obstacle."""
    position, velocity = np.asarray(scene.start.position), np.asarray(scene.start.velocity)
    speed = float(np.hypot(*velocity))
    if not validation.is_traced(limits.speed) and not 0 < speed <= float(limits.speed):
        raise ValueError(
            f"scene.start.velocity must be of a speed in (0, {float(limits.speed):g}], got {speed:g}. "
            "No plan begins otherwise; raise limits.speed."
        )
    for axis, name in enumerate("xy"):
        box = getattr(limits, name)
        if any(map(validation.is_traced, jax.tree.leaves(box))):
            continue
        low, high = np.asarray(box, np.float64).T
        for order, given in ((0, position[axis]), (1, velocity[axis])):
            if not low[order] <= given <= high[order]:
                part = ("position", "velocity")[order]
                raise ValueError(
                    f"scene.start.{part} must be within limits.{name}, [{low[order]:g}, "
                    f"{high[order]:g}], got {given:g}: no plan meets both."
                )
        if name == "y":
            ends = np.asarray(scene.lateral)
            if np.any((ends < low[0]) | (ends > high[0])):
                raise ValueError(
                    f"scene.lateral must be within limits.y, [{low[0]:g}, {high[0]:g}], got "
                    f"{validation.shown(ends.tolist())}: a plan ends there."
                )
    axes = np.maximum(np.asarray(scene.axes)[..., 0], VOID)
    away = position - np.asarray(scene.centres)[..., 0]
    if np.any(np.square(away / axes).sum(-1) < 1):
        raise ValueError(
            f"scene.start.position must be outside of all obstacles' ellipses, got "
            f"{position.tolist()}. Make scene.axes smaller, or start elsewhere."
        )
