"""MultiGoal: a point in the plane, and several goals that are equally good."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.rl.environment import Environment, Outcome, environment


class Goals(NamedTuple):
    """Where the goals are: the task of an agent.

    Attributes:
      places: `[G, 2]`.
    """

    places: Float[Array, "G 2"]


def multi_goal(
    goals: int = 6,
    *,
    radius: float = 5.0,
    reach: float = 1.0,
    bonus: float = 10.0,
    start: float = 0.1,
) -> Environment:
    """A point that may go to any of several goals, all equally far from where it starts.

        s <- s + clip(a, -1, 1), kept in [-7, 7]^2
        r = - 0.1 min distance to a goal - 0.05 |clip(a)|^2 + bonus where a goal is reached

    An episode ends within `reach` of a goal; bound its length with `time_limit`. What is seen is s.

    Args:
      goals: G >= 1, evenly on a circle.
      radius: of the circle, in (0, 7].
      reach: of a goal, > 0.
      bonus: of reaching one, >= 0.
      start: deviation of the start around the centre, >= 0.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Haarnoja et al., Reinforcement Learning with Deep Energy-Based Policies, arXiv 1702.08165.
    """
    validation.integer("goals", goals, low=1)
    validation.real("radius", radius, low=0.0, high=BOUND, low_open=True, scalar=True)
    validation.real("reach", reach, low=0.0, low_open=True, scalar=True)
    validation.real("bonus", bonus, low=0.0, scalar=True)
    validation.real("start", start, low=0.0, scalar=True)
    angles = 2 * math.pi * np.arange(goals) / goals
    places = radius * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)

    def reset(task: Goals, key: Key[Array, ""]) -> Float[Array, " 2"]:
        return start * jax.random.normal(key, (2,))

    def act(
        task: Goals, state: Float[Array, " 2"], action: Float[Array, " 2"], key: Key[Array, ""]
    ) -> Outcome:
        moved = jnp.clip(action, -1.0, 1.0)
        state = jnp.clip(state + moved, -BOUND, BOUND)
        least = jnp.min(jnp.linalg.norm(state - task.places, axis=-1))
        reached = least <= reach
        cost = 0.1 * least + 0.05 * jnp.sum(moved**2)
        return Outcome(state, bonus * reached - cost, reached)

    return environment(reset, act, lambda task, state: state, task=Goals(places))


class Coverage(NamedTuple):
    """Which goals episodes came to.

    Attributes:
      shares: `[G]` of the episodes that reached one.
      entropy: of the shares, over log G: 1 where all are alike, 0 for one goal.
      reached: the share of episodes that reached any.
    """

    shares: Float[Array, " G"]
    entropy: Float[Array, ""]
    reached: Float[Array, ""]


def coverage(
    ends: Float[Array, "E 2"], reached: Float[Array, " E"], places: Float[Array, "G 2"]
) -> Coverage:
    """Shares of the goals among episodes that reached one; an end belongs to the nearest goal.

    Args:
      ends: `[E, 2]`, where episodes ended.
      reached: `[E]`, whether they reached a goal there; booleans, or weights in [0, 1].
      places: `[G, 2]`, G >= 2.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.array("ends", ends, kind="real", shape=("E", 2))
    count = np.shape(ends)[0]
    boolean = getattr(reached, "dtype", None) is np.dtype(bool)
    validation.array("reached", reached, kind="boolean" if boolean else "real", shape=(count,))
    validation.array("places", places, kind="real", shape=("G", 2))
    goals = np.shape(places)[0]
    if goals < 2:
        raise ValueError(f"places must be of at least 2 goals, got {goals}.")
    weights = jnp.asarray(reached, jnp.float32)
    ends, places = jnp.asarray(ends), jnp.asarray(places)
    nearest = jnp.argmin(jnp.linalg.norm(ends[:, None] - places, axis=-1), axis=1)
    counts = weights @ jax.nn.one_hot(nearest, goals)
    shares = counts / jnp.maximum(jnp.sum(counts), 1.0)
    # 0 minus it, for a 0 without sign.
    entropy = 0.0 - jnp.sum(shares * jnp.log(jnp.maximum(shares, 1e-30))) / math.log(goals)
    return Coverage(shares, entropy, jnp.sum(counts) / max(count, 1))


BOUND = 7.0
