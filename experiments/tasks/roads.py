"""Roads with a truck that hides a place behind it, and the planners that drive past it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import dflax as dx
from dflax import robots
from dflax.robots import Limits, Road, Track

CURVES = robots.bernstein()
DETOUR, SLOTS, COLLISION = -2.0, 2, 0.49
# Which hypothesis imagines the hidden car, and options of `cpto`.
PLANNERS: dict[str, tuple[list[bool], dict[str, Any]]] = {
    "union": ([True], {}),
    "CPTO": ([True, False], {}),
    "without consensus": ([True, False], {"shared": 0}),
    "optimistic": ([False], {}),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """Scenes of a kind; pairs are ends of uniform laws.

    Attributes:
      speed: of the planning car, m/s.
      truck: x of the truck.
      gap: from truck to car, in metres along x; where one is imagined it is the mean.
      lateral: y of the car.
      imagined: y of the car that is imagined.
      moving: the speed of truck and car at first; 0: they are parked. They want twice as much, and
        follow by the intelligent driver model a third car that drives at this speed 25 m ahead.
      wary: the wanted speed while something is in the way, as a share.
    """

    speed: float = 8.0
    truck: tuple[float, float] = (16.0, 24.0)
    gap: tuple[float, float] = (4.5, 7.5)
    lateral: tuple[float, float] = (0.9, 1.6)
    imagined: float = 1.2
    moving: float = 0.0
    wary: float = 1.0


def scenes(family: Family, seed: int, count: int, slots: int = SLOTS) -> Road:
    """So many scenes of a seed; in every second one a car stands behind the truck.

    Slots are the truck, the hidden car and, where there are three, a car far ahead in moving traffic.
    """
    rng = np.random.default_rng(seed)
    x = rng.uniform(*family.truck, count)
    gap, lateral = rng.uniform(*family.gap, count), rng.uniform(*family.lateral, count)
    row, third = np.ones(count), np.arange(slots) == 2
    second = np.arange(slots) == 1
    along = np.stack([x, x + gap, x + gap + 25][:slots], 1)
    across = np.stack([2.4 * row, lateral, 2.4 * row][:slots], 1)
    imagined = np.where(second, (x + np.mean(family.gap))[:, None], along)
    car = np.where(np.arange(count) % 2 == 0, True, False)
    there = np.where(second, car[:, None], np.where(third, family.moving > 0, True))

    def every(values: Any) -> np.ndarray:
        return np.broadcast_to(values, (count, *np.shape(values))).copy()

    axes = [[4.5, 2.2], [4.0, 2.2], [4.0, 2.2]][:slots]
    bodies = [[4.0, 1.6], [2.0, 0.9], [2.0, 0.9]][:slots]
    return Road(
        places=np.stack([along, across], -1),
        speeds=every(np.full(slots, family.moving)),
        wanted=every(np.where(third, 1, 2) * family.moving),
        axes=every(axes),
        bodies=every(bodies),
        there=there,
        known=every(~second),
        phantoms=np.stack([imagined, np.where(second, family.imagined, across)], -1),
        drifts=every(np.where(second, family.moving, 0.0)),
        hidden=every(second),
        speed=family.speed * row,
        detour=DETOUR * row,
        wary=family.speed * family.wary * row,
    )


def together(roads: Sequence[Road]) -> Road:
    """Several batches of scenes as one."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *roads)


def limits(fastest: float = 10.0) -> Limits:
    """Of a road of 7 m."""
    usual = Limits()
    x, y = list(usual.x), list(usual.y)
    x[1], y[0] = (0.0, fastest), (-3.5, 3.5)
    return Limits(tuple(x), tuple(y), fastest)


@functools.cache
def drives(
    name: str, steps: int, iterations: int, slots: int = SLOTS, fastest: float = 10.0
) -> Callable[[Road], Track]:
    """The compiled function from scenes to what a planner did in them, leaves `[B, T, ...]`."""
    fears, options = PLANNERS[name]
    planner = robots.planner(
        CURVES, len(fears), slots, iterations, limits=limits(fastest), **options
    )
    imagined = np.array(fears)[:, None] & (np.arange(slots) == 1)
    algorithm = robots.driving(planner, steps, imagined)

    def run(road: Road) -> Track:
        key = jax.random.key(0)
        state = algorithm.init(key, road)
        source = dx.Population(road.speed.shape[0])
        return dx.rollout(algorithm, state, source, key, steps)[0].clients.track

    return jax.jit(run)


def told(track: Track, road: Road) -> dict[str, np.ndarray]:
    """What a drive comes to, scene by scene, `[B]`.

    `clearance`, the least (dx/a)^2 + (dy/b)^2 of the hidden car, infinite where there is none; `least`
    of all cars; `speed`, `offset` = |y| and `change` from plan to plan, means over the drive; `jump`,
    the greatest change.
    """
    nearest = np.asarray(track.nearest)
    velocity = np.asarray(track.start.velocity)
    return {
        "clearance": nearest[..., 1].min(1),
        "least": nearest.min((1, 2)),
        "speed": np.hypot(velocity[..., 0], velocity[..., 1]).mean(1),
        "offset": np.abs(np.asarray(track.start.position)[..., 1]).mean(1),
        "change": np.asarray(track.change)[:, 1:].mean(1),
        "jump": np.asarray(track.change)[:, 1:].max(1),
        "hidden": np.asarray(road.there)[:, 1],
    }
