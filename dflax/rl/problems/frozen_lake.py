"""A frozen lake on which one may slip once more after every move."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.rl.environment import Environment, Outcome, two_stage

# Left, down, right, up.
MOVES = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])


class Lake(NamedTuple):
    """A map of R x C cells, counted row by row: the task of an agent.

    Attributes:
      holes: `[R, C]` bool.
      start: `[]` int32, a cell.
      goal: `[]` int32, a cell that is no hole.
      slippery: `[]` in [0, 1], how often one slips.
      directions: `[R C, 4]`, where to from each cell: probabilities of left, down, right, up.
    """

    holes: Bool[AnyArray, "R C"]
    start: Int[AnyArray, ""]
    goal: Int[AnyArray, ""]
    slippery: Float[AnyArray, ""]
    directions: Float[AnyArray, "S 4"]


class Skater(NamedTuple):
    """The state before a decision, and after it.

    Attributes:
      cell: `[]` int32.
      over: `[]` bool, whether the decision was taken in a hole or at the goal.
    """

    cell: Int[Array, ""]
    over: Bool[Array, ""]


def frozen_lake(lake: Lake) -> Environment:
    """A frozen lake in two stages: a move, and then perhaps a slip.

        sx = the neighbour of s in the direction of the action 0, ..., 3; at the border s itself
        rx = near(sx) = 1/(1 + Manhattan distance to the goal)
        s' = sx, or with probability `slippery` its neighbour in a direction drawn from `directions[sx]`
        rx + rs = reward(sx) (+ reward(s') after a slip)

    with reward(cell) = 1 at the goal and near(cell) - [it is a hole]/(R + C) elsewhere. At the goal the
    episode ends, without a slip. In a hole it ends with the next action, which gives 0. A decision
    taken in a hole or at the goal leads nowhere and gives rx = 0. The cell is seen one-hot, `[R C]`.

    Args:
      lake: the task; agents may have other maps of the same size.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Felizardo et al., arXiv 2504.05150.
    """
    require_lake(lake)
    task = Lake(
        jnp.asarray(lake.holes, bool),
        jnp.asarray(lake.start, jnp.int32),
        jnp.asarray(lake.goal, jnp.int32),
        jnp.asarray(lake.slippery, jnp.float32),
        jnp.asarray(lake.directions, jnp.float32),
    )

    def reset(task: Lake, key: Key[Array, ""]) -> Skater:
        return Skater(jnp.asarray(task.start), jnp.bool_(False))

    def post(task: Lake, state: Skater, action: Int[Array, ""]) -> tuple[Skater, Array]:
        over = _is_hole(task, state.cell) | (state.cell == task.goal)
        cell = jnp.where(over, state.cell, _neighbour(task, state.cell, action))
        return Skater(cell, over), jnp.where(over, 0.0, _near(task, cell))

    def noise(task: Lake, decided: Skater, key: Key[Array, ""]) -> Outcome:
        slip_key, where_key = jax.random.split(key)
        cell, over = decided
        arrived = cell == task.goal
        slips = (jax.random.uniform(slip_key) < task.slippery) & ~arrived & ~over
        direction = jax.random.categorical(where_key, jnp.log(task.directions[cell]))
        after = jnp.where(slips, _neighbour(task, cell, direction), cell)
        reward = (
            _reward(task, cell) - _near(task, cell) + jnp.where(slips, _reward(task, after), 0.0)
        )
        end = over | (after == task.goal)
        return Outcome(Skater(after, jnp.bool_(False)), jnp.where(over, 0.0, reward), end)

    def observe(task: Lake, state: Skater) -> Array:
        return jax.nn.one_hot(state.cell, task.holes.size)

    return two_stage(reset, post, noise, observe, task=task)


def random_lake(
    seed: int,
    size: int = 10,
    *,
    frozen: float = 0.8,
    slippery: float = 0.5,
    slip_seed: int = 42,
) -> Lake:
    """A random square map from corner to corner, drawn again until a way leads around its holes.

    Directions of slips are drawn for each cell from the flat Dirichlet law.

    Args:
      seed: of NumPy's generator.
      size: cells of an edge, >= 2.
      frozen: in (0, 1], the probability of a cell to be no hole.
      slippery: in [0, 1], how often one slips.
      slip_seed: of the directions' generator; published: 42 for every map.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.seed("seed", seed)
    validation.seed("slip_seed", slip_seed)
    validation.integer("size", size, low=2, high=1_000)
    validation.probability("frozen", frozen, low_open=True)
    validation.probability("slippery", slippery)
    draw = np.random.default_rng(seed)
    directions = np.random.default_rng(slip_seed).dirichlet(np.ones(4), size**2)
    for _ in range(1_000):
        holes = draw.random((size, size)) >= frozen
        holes[0, 0] = holes[-1, -1] = False
        if _leads_there(holes):
            goal = np.asarray(size**2 - 1, np.int32)
            share = np.asarray(slippery, np.float32)
            return Lake(holes, np.zeros((), np.int32), goal, share, directions)
    raise ValueError(
        f"frozen must leave a way to the goal, got {frozen} with a size of {size}, and none of 1,000 "
        "maps had one. Take a larger one."
    )


def _leads_there(holes: Bool[np.ndarray, "R C"]) -> bool:
    """Whether the last cell is reached from the first one."""
    reached = np.zeros_like(holes)
    reached[0, 0] = True
    while True:
        wider = reached.copy()
        wider[1:] |= reached[:-1]
        wider[:-1] |= reached[1:]
        wider[:, 1:] |= reached[:, :-1]
        wider[:, :-1] |= reached[:, 1:]
        wider &= ~holes
        if (wider == reached).all():
            return bool(reached[-1, -1])
        reached = wider


def _neighbour(task: Lake, cell: Int[Array, ""], direction: Int[Array, ""]) -> Int[Array, ""]:
    rows, columns = task.holes.shape
    down, right = jnp.asarray(MOVES, jnp.int32)[direction]
    row = jnp.clip(cell // columns + down, 0, rows - 1)
    return row * columns + jnp.clip(cell % columns + right, 0, columns - 1)


def _near(task: Lake, cell: Int[Array, ""]) -> Float[Array, ""]:
    columns = task.holes.shape[1]
    down = jnp.abs(cell // columns - task.goal // columns)
    return 1.0 / (1.0 + down + jnp.abs(cell % columns - task.goal % columns))


def _is_hole(task: Lake, cell: Int[Array, ""]) -> Bool[Array, ""]:
    return task.holes.ravel()[cell]


def _reward(task: Lake, cell: Int[Array, ""]) -> Float[Array, ""]:
    """1 at the goal, where near is 1 and no hole is."""
    return _near(task, cell) - jnp.where(_is_hole(task, cell), 1.0, 0.0) / sum(task.holes.shape)


def require_lake(lake: Any) -> None:
    """Refuse what is no map of fitting shapes and values."""
    validation.instance("lake", lake, Lake, "See dflax.rl.random_lake.")
    validation.array("lake.holes", lake.holes, shape=("R", "C"), kind="boolean")
    cells = int(np.size(lake.holes))
    for name in ("start", "goal"):
        value = getattr(lake, name)
        validation.array(f"lake.{name}", value, shape=(), kind="integer")
        validation.real(f"lake.{name}", value, low=0, high=cells - 1)
    validation.probability("lake.slippery", lake.slippery)
    validation.array("lake.directions", lake.directions, shape=(cells, 4), kind="real")
    validation.real("lake.directions", lake.directions, low=0.0)
    if any(validation.is_traced(leaf) for leaf in lake):
        return
    if np.any(np.abs(np.sum(np.asarray(lake.directions), -1) - 1) > 1e-4):
        raise ValueError(
            "lake.directions must have rows that sum to 1, probabilities of left, down, right and up."
        )
    if np.asarray(lake.holes).ravel()[int(lake.goal)]:
        raise ValueError(f"lake.goal must be no hole, got the cell {int(lake.goal)}, which is one.")
