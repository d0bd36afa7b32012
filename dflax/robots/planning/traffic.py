"""Other cars: how they follow each other, and which of them can be seen."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dflax import validation

# The gap of a car that has nobody ahead, in metres.
FREE = 1e9


def in_view(
    eye: Float[Array, " 2"],
    targets: Float[Array, "K 2"],
    centres: Float[Array, "M 2"],
    axes: Float[Array, "M 2"],
    blocks: Bool[Array, "K M"] | None = None,
) -> Bool[Array, " K"]:
    """Whether the straight line from an eye to each target meets no ellipse.

    Args:
      eye: where it is seen from.
      targets: points.
      centres: of ellipses.
      axes: their half axes along x and y, > 0; 0 for one that hides nothing.
      blocks: which ellipse may hide which target, so that none hides its own centre; default all.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    start = _placed("eye", eye, (2,))
    ends = _placed("targets", targets, ("K", 2))
    middles = _placed("centres", centres, ("M", 2))
    radii = _placed("axes", axes, middles.shape, low=0.0)
    scale = 1 / jnp.maximum(radii, 1e-6)
    # In the units of an ellipse its distance from the line is that of a circle.
    way = (ends[:, None] - start) * scale
    there = (middles - start) * scale
    share = jnp.sum(way * there, -1) / jnp.maximum(jnp.sum(way * way, -1), 1e-12)
    off = there - jnp.clip(share, 0, 1)[..., None] * way
    meets = jnp.sum(off * off, -1) < 1
    if blocks is not None:
        shape = (ends.shape[0], middles.shape[0])
        meets = meets & jnp.asarray(validation.array("blocks", blocks, kind="boolean", shape=shape))
    return ~meets.any(1)


def _placed(name: str, value: Any, shape: tuple[int | str, ...], low: float = -np.inf) -> Array:
    """Real numbers of a shape."""
    given = validation.array(name, value, kind="real", shape=shape, low=low)
    return jnp.asarray(given, jnp.result_type(float))


def idm(
    gap: Float[Array, "..."],
    speed: Float[Array, "..."],
    closing: Float[Array, "..."],
    wanted: Float[Array, "..."],
    *,
    headway: float | Array = 1.5,
    standstill: float | Array = 2.0,
    acceleration: float | Array = 1.5,
    braking: float | Array = 2.0,
) -> Float[Array, "..."]:
    """The acceleration of the intelligent driver model (IDM).

        a [1 - (v / v_0)^4 - (s* / s)^2],   s* = s_0 + max(0, v T + v dv / (2 sqrt(a b)))

    Args:
      gap: s >= 0 in metres, bumper to bumper, to the car ahead; 1e9 for a free road.
      speed: v >= 0, m/s.
      closing: dv, by how much the car is faster than the one ahead.
      wanted: v_0 >= 0.
      headway: T > 0, s.
      standstill: s_0 > 0, m.
      acceleration: a > 0, m/s^2.
      braking: b > 0, comfortable, m/s^2.

    Returns:
      m/s^2, not below -4 b, which a car would not do.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Treiber, Hennecke and Helbing, Congested Traffic States in Empirical Observations and Microscopic
      Simulations, 2000.
    """
    fix = "A free road is a gap of 1e9."
    given = {"gap": gap, "speed": speed, "closing": closing, "wanted": wanted}
    made = []
    for name, value in given.items():
        least = -FREE if name == "closing" else 0.0
        checked = validation.array(name, value, kind="real", low=least, high=FREE, fix=fix)
        made.append(jnp.asarray(checked, jnp.result_type(float)))
    gap, speed, closing, wanted = made
    validation.real("headway", headway, low=0.0, low_open=True, scalar=True)
    validation.real("standstill", standstill, low=0.0, low_open=True, scalar=True)
    validation.real("acceleration", acceleration, low=0.0, low_open=True, scalar=True)
    validation.real("braking", braking, low=0.0, low_open=True, scalar=True)
    kept = standstill + jnp.maximum(
        0, speed * headway + speed * closing / (2 * jnp.sqrt(acceleration * braking))
    )
    near = jnp.square(kept / jnp.maximum(gap, 0.1))
    free = jnp.power(speed / jnp.maximum(wanted, 1e-3), 4)
    return jnp.maximum(acceleration * (1 - free - near), -4 * braking)


def following(
    places: Float[Array, "M 2"],
    speeds: Float[Array, " M"],
    wanted: Float[Array, " M"],
    lengths: Float[Array, " M"],
    there: Bool[Array, " M"],
    ego: Float[Array, " 2"],
    ego_speed: Float[Array, ""],
    *,
    lane: float = 1.75,
    ego_length: float = 4.5,
) -> Float[Array, " M"]:
    """IDM accelerations along x of cars behind whoever is next ahead in their lane, the ego car too.

    Args:
      places: of the M cars.
      speeds: along x, m/s.
      wanted: 0 for a parked car, which does not move.
      lengths: of cars, in metres.
      there: which cars there are.
      ego: where the planning car is.
      ego_speed: along x.
      lane: cars whose y differ by less are in one lane.
      ego_length: of the planning car.
    """
    everybody = jnp.concatenate([places, ego[None]])
    all_speeds = jnp.append(speeds, ego_speed)
    sizes = jnp.append(lengths, ego_length)
    real = jnp.append(there, True)
    ahead = everybody[None, :, 0] - places[:, None, 0]
    beside = jnp.abs(everybody[None, :, 1] - places[:, None, 1]) < lane
    count = places.shape[0]
    itself = np.eye(count, count + 1, dtype=bool)
    gaps = ahead - (sizes[None] + lengths[:, None]) / 2
    gaps = jnp.where((ahead > 0) & beside & real[None] & ~itself, jnp.maximum(gaps, 0), FREE)
    leader = jnp.argmin(gaps, axis=1)
    gap = jnp.take_along_axis(gaps, leader[:, None], 1)[:, 0]
    closing = jnp.where(gap < FREE, speeds - all_speeds[leader], 0)
    return jnp.where(wanted > 0, idm(gap, speeds, closing, wanted), 0)
