"""The frozen lake: single moves, the law of slips, and values by value iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lakes import GAMMA, kernel, optimal, small

from dflax import rl
from dflax.rl.problems.frozen_lake import MOVES, Skater

KEY = jax.random.key(0)


def at(cell):
    return Skater(jnp.int32(cell), jnp.bool_(False))


def test_into_the_goal_and_into_a_hole():
    lake = small(holes=[4])
    environment = rl.frozen_lake(lake)
    act = jax.jit(environment.act)
    arrived = act(environment.task, at(7), jnp.int32(2), KEY)
    assert float(arrived.reward) == 1
    assert bool(arrived.terminal)
    decided, gained = environment.post(environment.task, at(1), jnp.int32(1))
    assert int(decided.cell) == 4
    assert float(gained) == pytest.approx(1 / 3)
    still = rl.frozen_lake(lake._replace(slippery=np.float32(0)))
    fallen = jax.jit(still.act)(still.task, at(1), jnp.int32(1), KEY)
    assert float(fallen.reward) == pytest.approx(1 / 3 - 1 / 6)
    assert not bool(fallen.terminal)
    over = act(environment.task, fallen.state, jnp.int32(0), KEY)
    assert float(over.reward) == 0
    assert bool(over.terminal)
    assert int(over.state.cell) == 4


def test_the_law_of_slips_and_of_their_rewards():
    lake = small(holes=[5])
    environment = rl.frozen_lake(lake)
    keys = jax.random.split(KEY, 20_000)
    law, rewards, ends = kernel(lake)
    np.testing.assert_allclose(law.sum(1), 1)
    noise = jax.jit(jax.vmap(environment.noise, (None, None, 0)))
    for cell in (1, 4, 5, 7, 8):
        outcome = jax.tree.map(np.asarray, noise(environment.task, at(cell), keys))
        seen = np.bincount(outcome.state.cell, minlength=9) / len(keys)
        np.testing.assert_allclose(seen, law[cell], atol=0.015)
        near = environment.post(environment.task, at(cell), jnp.int32(0))  # traced like any other
        assert np.isfinite(float(near[1]))
        np.testing.assert_allclose(outcome.reward.mean(), rewards[cell], atol=0.015)
        np.testing.assert_array_equal(np.asarray(outcome.terminal), ends[outcome.state.cell])


@pytest.mark.slow
def test_values_by_value_iteration_are_what_the_best_policy_gains():
    """V*(s) = max_a (rx + Vx*(f(s, a))), Vx* = E[rs + gamma V*], and episodes agree."""
    lake = small(slippery=0.5)
    value, post_value, policy = optimal(lake)
    environment = rl.frozen_lake(lake)
    law, rewards, ends = kernel(lake)
    cells = np.arange(9)
    np.testing.assert_allclose(
        post_value, rewards + GAMMA * law @ np.where(ends, 0, value), atol=1e-10
    )
    post = jax.vmap(jax.vmap(environment.post, (None, None, 0)), (None, 0, None))
    state = Skater(jnp.asarray(cells[:8], jnp.int32), jnp.zeros(8, bool))
    decided, gained = post(environment.task, state, jnp.arange(4))
    best = np.max(np.asarray(gained) + post_value[np.asarray(decided.cell)], axis=1)
    np.testing.assert_allclose(value[:8], best, atol=1e-6)

    @jax.jit
    def gains(key):
        def act(seen, key):
            return jnp.asarray(policy)[jnp.argmax(seen, -1)], ()

        begun = rl.begin(environment, environment.task, key, 4_000)
        _, steps, _ = rl.rollout(environment, environment.task, act, begun, 60, key)
        first = jnp.cumsum(steps.end, axis=0) - steps.end == 0
        weights = GAMMA ** jnp.arange(60)[:, None]
        return jnp.sum(steps.reward * weights * first, axis=0)

    found = np.asarray(gains(KEY))
    assert abs(found.mean() - value[0]) < 4 * found.std() / np.sqrt(found.size)


def test_random_lakes_have_a_way_and_the_same_slips():
    one, other = rl.random_lake(0, 6), rl.random_lake(1, 6)
    assert not np.array_equal(one.holes, other.holes)
    np.testing.assert_array_equal(one.directions, other.directions)
    np.testing.assert_allclose(one.directions.sum(1), 1)
    for seed in range(5):
        holes = rl.random_lake(seed, 6, frozen=0.6).holes
        reached, frontier = set(), [(0, 0)]
        while frontier:
            cell = frontier.pop()
            inside = all(0 <= c < 6 for c in cell)
            if inside and not holes[cell] and cell not in reached:
                reached.add(cell)
                frontier += [tuple(np.add(cell, move)) for move in MOVES]
        assert (5, 5) in reached


def test_errors():
    lake = small()
    with pytest.raises(ValueError, match="frozen must leave a way"):
        rl.random_lake(0, 30, frozen=0.05)
    with pytest.raises(ValueError, match=r"lake.goal must be no hole"):
        rl.frozen_lake(lake._replace(goal=np.int32(4), holes=np.eye(3, dtype=bool)))
    with pytest.raises(ValueError, match=r"lake.directions must have rows that sum to 1"):
        rl.frozen_lake(lake._replace(directions=np.ones((9, 4))))
