"""PointMaze: a point among walls, and goals behind corners."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from dflax import validation
from dflax.rl.environment import Environment, Outcome, environment

HOOKS = """
###########
#####...G##
#G###.#####
#.###.#####
#.###.#####
#....S....#
#####.###.#
#####.###.#
#####.###G#
##G...#####
###########
"""


class Maze(NamedTuple):
    """A maze: the task of an agent. Cells are squares of side 1; cell (i, j) is around (i, j).

    Attributes:
      walls: `[H, W]`.
      distance: `[H, W]`, steps from cell to cell to the nearest goal; of walls, the largest.
      start: `[2]`.
      places: `[G, 2]`, of the goals.
    """

    walls: Bool[Array, "H W"]
    distance: Float[Array, "H W"]
    start: Float[Array, " 2"]
    places: Float[Array, "G 2"]


def point_maze(
    plan: str = HOOKS,
    *,
    speed: float = 0.5,
    reach: float = 0.5,
    bonus: float = 10.0,
    start: float = 0.1,
) -> Environment:
    """A point that finds its way among walls to any of the goals.

        s <- s + speed clip(a, -1, 1), one axis after the other, each only where no wall is
        r = 0.1 (d(s before) - d(s)) - 0.05 |clip(a)|^2 + bonus where a goal is reached

    d is the way from a cell to the nearest goal. An episode ends within `reach` of a goal; bound its
    length with `time_limit`. What is seen is s, from the start on.

    Args:
      plan: rows of characters: `#` wall, `S` the start, `G` a goal, `.` or a space free; walls all
        around. The default has four goals behind corners, alike up to a quarter turn.
      speed: in (0, 0.5]: no step leads over a wall.
      reach: of a goal, > 0.
      bonus: of reaching one, >= 0.
      start: deviation of the start, in [0, 0.1].

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.text("plan", plan)
    validation.real("speed", speed, low=0.0, high=0.5, low_open=True, scalar=True)
    validation.real("reach", reach, low=0.0, low_open=True, scalar=True)
    validation.real("bonus", bonus, low=0.0, scalar=True)
    fix = "A larger one begins in walls."
    validation.real("start", start, low=0.0, high=0.1, scalar=True, fix=fix)
    task = _read(plan)

    def reset(task: Maze, key: Key[Array, ""]) -> Float[Array, " 2"]:
        away = jnp.clip(start * jax.random.normal(key, (2,)), -0.45, 0.45)
        return task.start + away

    def act(
        task: Maze, state: Float[Array, " 2"], action: Float[Array, " 2"], key: Key[Array, ""]
    ) -> Outcome:
        moved = jnp.clip(action, -1.0, 1.0)
        after = state
        for axis in range(2):
            tried = after.at[axis].add(speed * moved[axis])
            after = jnp.where(_at(task.walls, tried), after, tried)
        reached = jnp.min(jnp.linalg.norm(after - task.places, axis=-1)) <= reach
        nearer = _at(task.distance, state) - _at(task.distance, after)
        cost = 0.05 * jnp.sum(moved**2)
        return Outcome(after, 0.1 * nearer - cost + bonus * reached, reached)

    return environment(reset, act, lambda task, state: state - task.start, task=task)


def maze_distances(walls: Bool[np.ndarray, "H W"], goals: Bool[np.ndarray, "H W"]) -> np.ndarray:
    """Steps from each cell to the nearest goal, from neighbour to neighbour, `[H, W]` float32.

    Args:
      walls: `[H, W]`.
      goals: `[H, W]`, some of them true, none in a wall.

    Returns:
      The steps; infinite in walls and where no way leads to a goal.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    walls = validation.array("walls", walls, kind="boolean", shape=("H", "W"))
    goals = validation.array("goals", goals, kind="boolean", shape=walls.shape)
    if not goals.any() or (goals & walls).any():
        raise ValueError("goals must be some cells, none of them a wall.")
    distance = np.where(goals, 0.0, np.inf).astype(np.float32)
    for _ in range(walls.size):
        padded = np.pad(distance, 1, constant_values=np.inf)
        around = (padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2])
        better = np.where(walls, np.inf, np.minimum(distance, np.min(around, axis=0) + 1))
        if np.array_equal(better, distance):
            break
        distance = better
    return distance


def _read(plan: str) -> Maze:
    """The maze that a plan draws."""
    rows = [row for row in plan.splitlines() if row.strip()]
    widths = {len(row) for row in rows}
    cells = np.array([list(row) for row in rows]) if len(widths) == 1 else np.zeros((0, 0))
    border = np.ones(cells.shape, bool)
    border[1:-1, 1:-1] = False
    fits = cells.size and np.isin(cells, list("#SG. ")).all() and (cells[border] == "#").all()
    if not fits or (cells == "S").sum() != 1 or not (cells == "G").any():
        raise ValueError(
            "plan must be rows of one length of the characters #, S, G and ., with # all around, one S "
            f"and a G, got {validation.shown(plan)}. See dflax.rl.goals.point_maze.HOOKS."
        )
    walls, goals = cells == "#", cells == "G"
    distance = maze_distances(walls, goals)
    begin = np.argwhere(cells == "S")[0]
    if not np.isfinite(distance[tuple(begin)]):
        raise ValueError("plan must have a way from S to a G, got one without.")
    finite = np.isfinite(distance)
    filled = np.where(finite, distance, distance[finite].max())
    floats = (filled, begin, np.argwhere(goals))
    return Maze(jnp.asarray(walls), *(jnp.asarray(each, jnp.float32) for each in floats))


def _at(field: Array, place: Float[Array, " 2"]) -> Array:
    """The field's value in the cell of a place."""
    row, column = jnp.round(place).astype(jnp.int32)
    return field[row, column]
