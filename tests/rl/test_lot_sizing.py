"""Lot sizing: the stages by hand, the laws of demand and of beginnings, bounds by trying everything."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import rl
from dflax.rl.problems.lot_sizing import Plant

KEY = jax.random.key(0)


def surely(*demand, trials=10):
    """Demands that are known."""
    return np.eye(trials + 1)[list(demand)]


BY_HAND = rl.LotSizing(
    production=np.array([[10.0, 8.0]]),
    setup_cost=np.array([[15.0, 20.0]]),
    setup_loss=np.array([[1.0, 3.0]]),
    holding_cost=np.full(2, 0.01),
    lost_cost=np.ones(2),
    capacity=np.full(2, 100.0),
    demand=surely(7, 4),
)
TWO = rl.LotSizing(
    production=np.array([[10.0, 8.0], [9.0, 7.0]]),
    setup_cost=np.array([[15.0, 20.0], [16.0, 17.0]]),
    setup_loss=np.array([[1.0, 3.0], [2.0, 1.0]]),
    holding_cost=np.full(2, 0.01),
    lost_cost=np.ones(2),
    capacity=np.full(2, 12.0),
    demand=surely(0, 4),
)


def plant(inventory, setup):
    return Plant(jnp.asarray(inventory, jnp.float32), jnp.asarray(setup, jnp.int32))


def test_a_period_by_hand():
    environment = rl.lot_sizing(BY_HAND)
    decided, gained = environment.post(environment.task, plant([5, 0], [1]), jnp.array([2]))
    np.testing.assert_allclose(decided.inventory, [5, 5])
    assert decided.setup.tolist() == [2]
    assert float(gained) == -20
    outcome = environment.noise(environment.task, decided, KEY)
    np.testing.assert_allclose(outcome.state.inventory, [0, 1])
    np.testing.assert_allclose(outcome.reward, -2.01, rtol=1e-6)
    whole = environment.act(environment.task, plant([5, 0], [1]), jnp.array([2]), KEY)
    np.testing.assert_allclose(whole.reward, -22.01, rtol=1e-6)
    assert not bool(whole.terminal)


@pytest.mark.parametrize(
    ("action", "inventory", "gained"),
    [
        ([1, 1], [5 + 10 + 9 - 2, 0], -16.0),  # one goes on, the other is set up: both are added
        ([0, 2], [5, 7], 0.0),  # idle costs nothing, and neither does going on
        ([2, 0], [5, 5], -20.0),
    ],
)
def test_machines_add_up(action, inventory, gained):
    environment = rl.lot_sizing(TWO)
    decided, reward = environment.post(environment.task, plant([5, 0], [1, 2]), jnp.array(action))
    np.testing.assert_allclose(decided.inventory, inventory)
    assert decided.setup.tolist() == action
    assert float(reward) == gained


def test_what_is_kept_is_at_most_the_capacity_and_idle_machines_forget_their_setup():
    environment = rl.lot_sizing(TWO)
    outcome = environment.noise(environment.task, plant([40, -3], [0, 1]), KEY)
    np.testing.assert_allclose(outcome.state.inventory, [12, 0])
    np.testing.assert_allclose(outcome.reward, -(7 + 0.12), rtol=1e-6)
    _, again = environment.post(environment.task, outcome.state, jnp.array([1, 1]))
    assert float(again) == -15


def test_demand_has_its_law_and_episodes_begin_where_they_may():
    instance = rl.random_instance(3, 3, 2)
    environment = rl.lot_sizing(instance)
    keys = jax.random.split(KEY, 20_000)
    full = plant([50.0] * 3, [0, 0])

    @jax.jit
    def many(keys):
        def one(key):
            left = environment.noise(environment.task, full, key).state.inventory
            return 50 - left, environment.reset(environment.task, key)

        return jax.vmap(one)(keys)

    demand, begun = jax.tree.map(np.asarray, many(keys))
    for item in range(3):
        share = np.bincount(demand[:, item].astype(int), minlength=21) / len(demand)
        np.testing.assert_allclose(share, instance.demand[item], atol=0.012)
    assert begun.inventory.min() == 0
    assert begun.inventory.max() == 99
    np.testing.assert_allclose(begun.inventory.mean(0), 49.5, atol=1.0)
    for machine in range(2):
        seen = set(begun.setup[:, machine].tolist())
        assert seen == {1 + i for i in range(3) if instance.production[machine, i] > 0}


def test_setups_are_seen_where_that_is_asked_for():
    hidden, shown = rl.lot_sizing(TWO), rl.lot_sizing(TWO, observe_setup=True)
    state = plant([5, 1], [0, 2])
    assert hidden.observe(hidden.task, state).tolist() == [5, 1]
    assert shown.observe(shown.task, state).tolist() == [5, 1, 1, 0, 0, 0, 0, 1]


def test_random_instances_lie_on_their_grids_and_every_item_has_a_machine():
    for seed in range(5):
        made = rl.random_instance(seed, 6, 3)
        assert set(np.unique(made.setup_cost)) <= set(range(15, 31))
        assert set(np.unique(made.setup_loss)) <= {1, 2, 3}
        assert set(np.unique(made.lost_cost)) <= {0.1, 1.1}
        assert set(np.unique(made.production)) <= set(range(41))
        assert (made.production > 0).any(0).all()
        np.testing.assert_allclose(made.demand.sum(-1), 1)
        np.testing.assert_allclose(made.demand @ np.arange(21), 8)


@pytest.mark.parametrize("holding", [0.0, 0.01])
def test_nobody_beats_the_plan_with_perfect_information(holding):
    """Of all plans for three periods the solver's is the best; with holding costs it is a bound."""
    instance = BY_HAND._replace(demand=surely(6, 5), holding_cost=np.full(2, holding))
    environment = rl.lot_sizing(instance)
    demand = np.array([[6, 5]] * 3)
    plans = np.array(list(itertools.product(range(3), repeat=3)))[..., None]

    @jax.jit
    @jax.vmap
    def played(actions):
        def one(state, action):
            outcome = environment.act(environment.task, state, action, KEY)
            return outcome.state, outcome.reward

        return jax.lax.scan(one, plant([4, 9], [1]), actions)[1].sum()

    rewards = np.asarray(played(jnp.asarray(plans)))
    plan = rl.perfect_information(instance, np.array([4, 9]), np.array([1]), demand)
    np.testing.assert_allclose(plan.bound, plan.reward, atol=1e-3)
    assert plan.bound >= rewards.max() - 1e-4
    if not holding:
        np.testing.assert_allclose(plan.reward, rewards.max(), rtol=1e-5)
        own = played(jnp.asarray(plan.actions)[None])[0]
        np.testing.assert_allclose(own, plan.reward, rtol=1e-5)


def test_a_bound_comes_even_when_the_time_is_up():
    instance = rl.random_instance(1, 6, 3)
    demand = np.random.default_rng(0).binomial(20, 0.4, (30, 6))
    plan = rl.perfect_information(instance, np.full(6, 20), np.ones(3, int), demand, seconds=0.3)
    assert np.isfinite(plan.bound)
    assert not plan.reward > plan.bound


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"demand": np.ones((2, 3))}, "instance.demand must have rows that sum to 1"),
        ({"capacity": np.zeros(2)}, "instance.capacity"),
        ({"setup_cost": np.ones((2, 2))}, "instance.setup_cost"),
        ({"production": np.zeros((1, 2))}, "instance.production must have a positive entry"),
    ],
)
def test_instances_that_are_none(change, message):
    with pytest.raises(ValueError, match=message):
        rl.lot_sizing(BY_HAND._replace(**change))


def test_other_errors():
    with pytest.raises(ValueError, match="unable must leave every item a machine"):
        rl.random_instance(0, 40, 1, unable=0.9)
    with pytest.raises(ValueError, match="probability must be one number or have the shape"):
        rl.binomial_demand(3, 20, np.full(2, 0.4))
    with pytest.raises(ValueError, match="setup"):
        rl.perfect_information(BY_HAND, np.zeros(2), np.array([3]), np.ones((2, 2)))
