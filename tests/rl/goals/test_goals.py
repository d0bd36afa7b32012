"""MultiGoal and PointMaze step by step in NumPy, and what coverage counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import rl
from dflax.rl import goals

KEY = jax.random.key(0)


def test_a_step_of_multi_goal():
    env = goals.multi_goal(6)
    rng = np.random.default_rng(0)
    state, action = rng.uniform(-7, 7, (200, 2)), rng.normal(scale=1.5, size=(200, 2))
    found = jax.vmap(lambda s, a: env.act(env.task, s, a, KEY))(
        jnp.float32(state), jnp.float32(action)
    )
    angles = np.arange(6) * np.pi / 3
    places = 5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    moved = np.clip(action, -1, 1)
    after = np.clip(state + moved, -7, 7)
    least = np.linalg.norm(after[:, None] - places, axis=-1).min(1)
    reward = -0.1 * least - 0.05 * (moved**2).sum(1) + 10 * (least <= 1)
    np.testing.assert_allclose(found.state, after, atol=1e-5)
    np.testing.assert_allclose(found.reward, reward, atol=1e-5)
    np.testing.assert_array_equal(found.terminal, least <= 1)
    assert found.terminal.any()
    assert not found.terminal.all()


def test_agents_may_have_goals_of_their_own():
    env = goals.multi_goal(2)
    tasks = goals.Goals(jnp.array([[[1.0, 0.0]], [[-1.0, 0.0]]]))
    found = jax.vmap(lambda task: env.act(task, jnp.zeros(2), jnp.array([0.9, 0.0]), KEY))(tasks)
    np.testing.assert_array_equal(found.terminal, [True, False])


def test_coverage():
    places = np.array([[1.0, 0], [-1, 0], [0, 1]], np.float32)
    ends = np.array([[1.1, 0], [0.9, 0.1], [-1, 0], [0, -5]], np.float32)
    found = goals.coverage(ends, np.array([True, True, True, False]), places)
    shares = np.array([2, 1, 0]) / 3
    np.testing.assert_allclose(found.shares, shares, rtol=1e-6)
    entropy = -(shares[:2] @ np.log(shares[:2])) / np.log(3)
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-5)
    np.testing.assert_allclose(found.reached, 0.75)
    nobody = goals.coverage(ends, np.zeros(4, bool), places)
    assert float(nobody.entropy) == float(nobody.reached) == 0


def test_distances_are_those_of_a_search():
    rng = np.random.default_rng(1)
    walls = rng.random((9, 11)) < 0.3
    ends = np.zeros_like(walls)
    free = np.argwhere(~walls)
    ends[tuple(free[0])] = ends[tuple(free[-1])] = True
    wanted = np.full(walls.shape, np.inf)
    queue = [tuple(cell) for cell in np.argwhere(ends)]
    for cell in queue:
        wanted[cell] = 0
    while queue:
        i, j = queue.pop(0)
        for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            inside = 0 <= cell[0] < 9 and 0 <= cell[1] < 11
            if inside and not walls[cell] and np.isinf(wanted[cell]):
                wanted[cell] = wanted[i, j] + 1
                queue.append(cell)
    np.testing.assert_array_equal(goals.maze_distances(walls, ends), wanted)


def test_nobody_walks_through_walls():
    env = goals.point_maze()
    walls = np.asarray(env.task.walls)
    keys = jax.random.split(KEY, 64)

    def walk(key):
        def one(state, key):
            outcome = env.act(env.task, state, 2 * jax.random.normal(key, (2,)), key)
            return outcome.state, outcome

        start = env.reset(env.task, key)
        return jax.lax.scan(one, start, jax.random.split(key, 60))[1]

    found = jax.jit(jax.vmap(walk))(keys)
    cells = np.round(np.asarray(found.state)).astype(int)
    assert not walls[cells[..., 0], cells[..., 1]].any()
    # Some came far from the centre, none without a way.
    assert np.abs(np.asarray(found.state) - 5).max() > 2


def test_a_step_of_the_maze_slides_along_walls_and_pays_for_the_way():
    env = goals.point_maze(start=0.0)
    state = env.reset(env.task, KEY)
    np.testing.assert_array_equal(state, [5, 5])
    found = env.act(env.task, jnp.array([5.0, 7.3]), jnp.array([-0.8, 1.0]), KEY)
    np.testing.assert_allclose(found.state, [4.6, 7.8], atol=1e-6)
    found = env.act(env.task, jnp.array([4.6, 7.8]), jnp.array([-1.0, 1.0]), KEY)
    np.testing.assert_allclose(found.state, [4.6, 8.3], atol=1e-6)
    np.testing.assert_allclose(found.reward, -0.05 * 2, atol=1e-6)
    found = env.act(env.task, jnp.array([5.0, 5.4]), jnp.array([0.0, 1.0]), KEY)
    np.testing.assert_allclose(found.reward, 0.1 - 0.05, atol=1e-6)
    reached = env.act(env.task, jnp.array([7.4, 9.0]), jnp.array([0.5, 0.0]), KEY)
    assert bool(reached.terminal)
    assert float(reached.reward) > 9


PLANS = {
    "ragged": "####\n#SG\n####",
    "open": "####\n#SG.\n####",
    "no goal": "####\n#S.#\n####",
    "two starts": "#####\n#SSG#\n#####",
    "no way": "#####\n#S#G#\n#####",
    "other signs": "####\n#SX#\n####",
}


@pytest.mark.parametrize("name", PLANS)
def test_mazes_that_cannot_be_read_are_refused(name):
    with pytest.raises(ValueError, match=r"^plan must"):
        goals.point_maze(PLANS[name])


def test_goals_on_a_way_out_of_the_square_are_refused():
    with pytest.raises(ValueError, match=r"^radius must"):
        goals.multi_goal(radius=8.0)
    with pytest.raises(ValueError, match=r"^places must"):
        goals.coverage(np.zeros((1, 2)), np.ones(1), np.zeros((1, 2)))
    assert isinstance(goals.multi_goal(), rl.Environment)
