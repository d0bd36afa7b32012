"""What robots do with the protocol: what they claim, what they doubt, what they make of claims."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation

NOBODY = -1


class Robot(NamedTuple):
    """One robot at one tick, as an application sees it.

    Attributes:
      number: `[]` int32, which of the n robots it is.
      position: `[2]` where it is, in metres.
      tick: `[]` int32, the time.
      memory: what the application keeps for it.
      key: its own typed key of this tick.
    """

    number: Int[Array, ""]
    position: Float[Array, "2"]
    tick: Int[Array, ""]
    memory: Any
    key: Key[Array, ""]


class Claims(NamedTuple):
    """Claims that one robot has, at most one of each of the n robots, its own among them.

    Attributes:
      value: `[n, k]` what is claimed.
      age: `[n]` int32, ticks since it was claimed.
      delay: `[n]` int32, ticks from then until it came here: no less than the hops it took.
      there: `[n]` bool, whether there is one; the rest of an absent one says nothing.
      new: `[n]` bool, whether it came at this tick.
    """

    value: Float[Array, "n k"]
    age: Int[Array, " n"]
    delay: Int[Array, " n"]
    there: Bool[Array, " n"]
    new: Bool[Array, " n"]


class Statement(NamedTuple):
    """What one robot claims at a tick.

    Attributes:
      made: `[]` bool, whether it claims anything.
      value: `[k]` what.
    """

    made: Bool[Array, ""]
    value: Float[Array, " k"]


class Estimate(NamedTuple):
    """What one robot takes for true.

    Attributes:
      value: `[e]`, for example a position.
      valid: `[]` bool; False where the robot knows nothing, and `value` means nothing.
    """

    value: Float[Array, " e"]
    valid: Bool[Array, ""]


class Application(NamedTuple):
    """What a swarm works at: functions of one robot, applied to all of them at once.

    A rule of suspicion is sound if no honest claim that honest robots forward is ever accused. All that
    the protocol promises rests on it.

    Attributes:
      start: `start(robot) -> (memory, estimate)` before the first tick.
      observe: `observe(robot) -> (memory, statement)`: what it senses now, and what it then tells.
      lie: `lie(robot, statement) -> statement`: what a Byzantine robot tells in its place.
      accuse: `accuse(robot, claims) -> [n]` int32: whom each claim makes it accuse, -1 for nobody. A
        claim that accuses is not kept. Asked of cooperative robots, about claims as they come.
      estimate: `estimate(robot, claims) -> (memory, estimate)` from the claims that are kept.
      error: `error(robot, value) -> []`, how far its estimate is from the truth.
      aged: `aged(value, age) -> value`: what a claim of the past says of now, for rules that average
        claims.
    """

    start: Callable[[Robot], tuple[Any, Estimate]]
    observe: Callable[[Robot], tuple[Any, Statement]]
    lie: Callable[[Robot, Statement], Statement]
    accuse: Callable[[Robot, Claims], Int[Array, " n"]]
    estimate: Callable[[Robot, Claims], tuple[Any, Estimate]]
    error: Callable[[Robot, Float[Array, " e"]], Float[Array, ""]]
    aged: Callable[[Float[Array, " k"], Int[Array, ""]], Float[Array, " k"]]


def origins(suspicious: Bool[Array, " n"]) -> Int[Array, " n"]:
    """Whom to accuse where the origin of each suspicious claim is to blame.

    Args:
      suspicious: `[n]` booleans, of the claim of each origin.

    Returns:
      `[n]` int32: the origin's number, -1 where the claim is not suspicious.

    Raises:
      TypeError, ValueError: no such array.
    """
    suspicious = jnp.asarray(
        validation.array("suspicious", suspicious, kind="boolean", shape=("n",))
    )
    return jnp.where(suspicious, jnp.arange(suspicious.shape[0], dtype=jnp.int32), NOBODY)
