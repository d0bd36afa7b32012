"""Environments with several goals that are equally good, and which of them a policy comes to."""

from dflax.rl.goals.multi_goal import Coverage, Goals, coverage, multi_goal
from dflax.rl.goals.point_maze import Maze, maze_distances, point_maze

__all__ = [
    "Coverage",
    "Goals",
    "Maze",
    "coverage",
    "maze_distances",
    "multi_goal",
    "point_maze",
]


def __dir__() -> list[str]:
    return __all__
