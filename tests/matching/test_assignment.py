import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from dflax.matching import assign, assign_by_optax, assign_on_host

HAND = np.array([[0.9, 0.1, 0.0], [0.2, 0.1, 0.8], [0.3, 0.7, 0.2]], np.float32)
WAYS = [assign, assign_by_optax, assign_on_host]
solve = jax.jit(assign)


def value(profit, columns):
    return np.take_along_axis(profit, np.asarray(columns)[..., None], -1).sum((-1, -2))


def optimum(profit):
    flat = profit.reshape(-1, *profit.shape[-2:]).astype(np.float64)
    best = [one[linear_sum_assignment(one, maximize=True)].sum() for one in flat]
    return np.reshape(best, profit.shape[:-2])


@pytest.mark.parametrize("way", WAYS)
def test_the_hand_case(way):
    found = jax.jit(way)(HAND)
    np.testing.assert_array_equal(found, [0, 2, 1])
    np.testing.assert_allclose(value(HAND, found), 2.4, rtol=1e-6)


def cases():
    generator = np.random.default_rng(0)
    draws = {
        "normal": generator.normal(size=(200, 24, 24)),
        "ties": generator.integers(0, 3, (200, 24, 24)),
        "low rank": np.einsum("bi,bj->bij", *generator.normal(size=(2, 200, 24))),
        "constant": np.zeros((200, 24, 24)),
        "dead rows": generator.normal(size=(200, 24, 24)) * (generator.random((200, 24, 1)) < 0.5),
    }
    return [pytest.param(profit.astype(np.float32), id=name) for name, profit in draws.items()]


@pytest.mark.parametrize("profit", cases())
def test_what_is_found_is_an_optimal_permutation(profit):
    found = np.asarray(solve(profit))
    np.testing.assert_array_equal(np.sort(found, -1), np.broadcast_to(np.arange(24), found.shape))
    np.testing.assert_allclose(value(profit, found), optimum(profit), rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_small_problems_and_batches_of_batches():
    for units in (1, 2):
        profit = np.random.default_rng(units).normal(size=(2, 3, units, units)).astype(np.float32)
        found = assign(profit)
        assert found.shape == (2, 3, units)
        np.testing.assert_allclose(value(profit, found), optimum(profit), rtol=1e-5)
    profit = np.random.default_rng(3).normal(size=(2, 3, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(jax.vmap(assign_on_host)(profit), assign(profit))


def test_what_is_not_finite_still_gives_a_permutation():
    profit = jnp.asarray(HAND).at[0].set(jnp.nan).at[1, 0].set(jnp.inf)
    for way in (assign, assign_on_host):
        found = np.asarray(way(profit))
        assert sorted(found) == [0, 1, 2]
        assert found[1] == 0


@pytest.mark.parametrize("way", WAYS)
def test_layers_of_different_widths_are_refused(way):
    with pytest.raises(ValueError, match="no permutation of each other"):
        way(jnp.zeros((3, 4)))
