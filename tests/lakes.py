"""A lake of 3 x 3 cells with its kernel and its values, in NumPy."""

import numpy as np

from dflax import rl
from dflax.rl.problems.frozen_lake import MOVES

GAMMA = 0.9


def small(holes=(), slippery=0.5):
    lake = rl.random_lake(0, 3, slippery=slippery)
    frozen = np.zeros(9, bool)
    frozen[list(holes)] = True
    return lake._replace(holes=frozen.reshape(3, 3))


def beside(cell, direction):
    row, column = np.clip(np.divmod(cell, 3) + MOVES[direction], 0, 2)
    return 3 * row + column


def near(cell):
    return 1 / (1 + abs(2 - cell // 3) + abs(2 - cell % 3))


def kernel(lake):
    """`P(s' | sx)`, the mean of rs after sx, and which s' end an episode; for a fresh arrival at sx."""
    holes, goal = lake.holes.ravel().astype(float), int(lake.goal)
    law, rewards = np.zeros((9, 9)), np.zeros(9)
    for cell in range(9):
        if cell == goal:
            law[cell, cell] = 1
            continue
        law[cell, cell] = 1 - lake.slippery
        rewards[cell] = -holes[cell] / 6
        for direction, share in enumerate(lake.directions[cell]):
            after = beside(cell, direction)
            law[cell, after] += lake.slippery * share
            rewards[cell] += lake.slippery * share * (near(after) - holes[after] / 6)
    return law, rewards, np.arange(9) == goal


def optimal(lake):
    """V*, Vx* and the best actions of a lake without holes."""
    law, rewards, ends = kernel(lake)
    value = np.zeros(9)
    for _ in range(500):
        post_value = rewards + GAMMA * law @ np.where(ends, 0, value)
        choices = of_actions(post_value)
        value = np.where(ends, 0, choices.max(1))
    return value, post_value, choices.argmax(1)


def of_actions(post_value):
    """Q(s, a) = rx + Vx(f(s, a)), `[9, 4]`."""
    arrived = np.array([[beside(cell, a) for a in range(4)] for cell in range(9)])
    return near(arrived) + post_value[arrived]


def of_uniform(lake):
    """V and Vx of the policy that draws its action among all alike."""
    law, rewards, ends = kernel(lake)
    value = np.zeros(9)
    for _ in range(500):
        post_value = rewards + GAMMA * law @ np.where(ends, 0, value)
        value = np.where(ends, 0, of_actions(post_value).mean(1))
    return value, post_value
