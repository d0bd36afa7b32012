"""Time synchronisation: anchors know the time, the clocks of the others drift."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.robots.application import Application, Claims, Estimate, Robot, Statement, origins


class Clock(NamedTuple):
    """A robot's clock.

    Attributes:
      time: `[]` what it shows, in ticks.
      rate: `[]` its mean pace, 1 for a right one.
    """

    time: Float[Array, ""]
    rate: Float[Array, ""]


def time_synchronisation(
    anchors: Bool[AnyArray, " n"],
    *,
    period: int = 100,
    lying_period: int = 400,
    lie_by: float | Float[Array, ""] = 1000.0,
    drift: float | Float[Array, ""] = 0.01,
    jitter: float | Float[Array, ""] = 0.05,
    offset: float | Float[Array, ""] = 10.0,
) -> Application:
    """Anchors claim the time; on a new claim others set their clocks to the greatest claim they keep.

        clock <- clock + rate + U(-jitter, jitter),    rate = 1 + U(-drift, drift)

    An anchor suspects a claim that is not before its own time: an honest one is late by at least the
    tick that a hop takes. Claims are not aged, so that an honest clock is late by as many ticks as the
    claim took, and one liar that is not blocked suffices, both by design of the rule.

    Args:
      anchors: `[n]` booleans, who knows the time.
      period: ticks between an anchor's claims, >= 1. The window of the swarm must not be shorter if
        the clocks are to have a claim at all times.
      lying_period: ticks between a Byzantine robot's claims, >= 1.
      lie_by: what these add to the time, in ticks.
      drift: bound of the constant error of a clock's pace, >= 0.
      jitter: bound of its random error at each tick, >= 0.
      offset: bound of its first error, in ticks, >= 0.

    Returns:
      An `Application`; a claim and an estimate are one number `[1]`, ticks. Every estimate is valid.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.array("anchors", anchors, kind="boolean", shape=("n",))
    validation.integer("period", period, low=1)
    validation.integer("lying_period", lying_period, low=1)
    validation.real("lie_by", lie_by, scalar=True)
    validation.real("drift", drift, low=0.0, scalar=True)
    validation.real("jitter", jitter, low=0.0, scalar=True)
    validation.real("offset", offset, low=0.0, scalar=True)
    knows = jnp.asarray(given)

    def start(robot: Robot) -> tuple[Clock, Estimate]:
        pace, first = jax.random.uniform(robot.key, (2,), minval=-1.0)
        time = jnp.where(knows[robot.number], 0.0, offset * first)
        clock = Clock(time, jnp.where(knows[robot.number], 1.0, 1.0 + drift * pace))
        return clock, Estimate(time[None], jnp.ones((), bool))

    def observe(robot: Robot) -> tuple[Clock, Statement]:
        true = robot.tick.astype(jnp.float32)
        wrong = jitter * jax.random.uniform(robot.key, minval=-1.0)
        anchor = knows[robot.number]
        time = jnp.where(anchor, true, robot.memory.time + robot.memory.rate + wrong)
        says = anchor & (robot.tick % period == 0)
        return robot.memory._replace(time=time), Statement(says, true[None])

    def lie(robot: Robot, honest: Statement) -> Statement:
        return Statement(robot.tick % lying_period == 0, honest.value + lie_by)

    def accuse(robot: Robot, claims: Claims) -> Int[Array, " n"]:
        return origins(knows[robot.number] & (claims.value[:, 0] >= robot.tick))

    def estimate(robot: Robot, claims: Claims) -> tuple[Clock, Estimate]:
        latest = jnp.max(jnp.where(claims.there, claims.value[:, 0], -jnp.inf))
        hears = jnp.any(claims.new) & ~knows[robot.number]
        time = jnp.where(hears, latest, robot.memory.time)
        return robot.memory._replace(time=time), Estimate(time[None], jnp.ones((), bool))

    def error(robot: Robot, value: Float[Array, "1"]) -> Float[Array, ""]:
        return jnp.abs(value[0] - robot.tick)

    def aged(value: Float[Array, "1"], age: Int[Array, ""]) -> Float[Array, "1"]:
        return value + age

    return Application(start, observe, lie, accuse, estimate, error, aged)
