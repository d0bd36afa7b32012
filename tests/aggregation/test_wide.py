"""Every rule in the widest type at hand: against NumPy in float64, and of values in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import aggregation
from dflax.aggregation.rows.distances import distances_of, robust_products

ROWS, TRIM = 31, 9
TIGHT = {"rtol": 1e-13, "atol": 1e-14}


def weiszfeld(values, weights, steps, smoothing):
    center = np.zeros(values.shape[1])
    for _ in range(steps):
        near = weights / np.maximum(np.linalg.norm(center - values, axis=1), smoothing)
        center = near @ values / near.sum()
    return center


@pytest.fixture(scope="module")
def task():
    generator = np.random.default_rng(0)
    return generator.normal(5.0, 1.0, (ROWS, 4, 3)), generator.uniform(size=ROWS)


def apply(rule, values, weights):
    return jax.jit(rule.apply)(values, weights, (), jax.random.key(0))[0]


def test_rules_are_those_of_numpy_in_float64(task):
    values, weights = task
    flat = values.reshape(ROWS, -1)
    shares = weights / weights.sum()
    with jax.enable_x64(True):
        found = {
            "mean": apply(aggregation.mean(), values, weights),
            "median": apply(aggregation.median(), values, weights),
            "trimmed": apply(aggregation.trimmed_mean(TRIM), values, weights),
            "geometric": apply(aggregation.geometric_median(5), values, weights),
            "vote": apply(aggregation.majority_vote(), values - 5, weights),
            "distances": jax.jit(aggregation.squared_distances)(values, weights),
            "gram": jax.jit(aggregation.gram)(values),
            "variances": jax.jit(aggregation.variances)({"w": jnp.asarray(values)})[:, 0],
            "equal": dx.weighted_mean(jnp.asarray(values)),
            "lists": dx.weighted_mean(jnp.asarray(values), list(weights)),
        }
    signs = np.sign(np.tensordot(shares, np.sign(values - 5), 1))
    exact = {
        "mean": np.tensordot(shares, values, 1),
        "median": np.median(values, 0),
        "trimmed": np.sort(values, 0)[TRIM:-TRIM].mean(0),
        "geometric": weiszfeld(flat, weights, 5, 0.1).reshape(4, 3),
        "vote": signs,
        "distances": ((flat[:, None] - flat) ** 2).sum(-1),
        "gram": flat @ flat.T,
        "variances": flat.var(1),
        "equal": values.mean(0),
        "lists": np.tensordot(shares, values, 1),
    }
    for name, expected in exact.items():
        assert found[name].dtype == np.float64, name
        np.testing.assert_allclose(found[name], expected, err_msg=name, **TIGHT)


def test_what_all_send_comes_back_to_the_last_digit(task):
    _, weights = task
    with jax.enable_x64(True):
        same = jnp.full((ROWS, 2), 0.1, float)
        for rule in (
            aggregation.mean(),
            aggregation.median(),
            aggregation.trimmed_mean(TRIM),
            aggregation.geometric_median(),
        ):
            np.testing.assert_allclose(apply(rule, same, weights), 0.1, rtol=1e-15)


def test_values_in_half_precision_are_added_in_float32(task):
    rows = jnp.ones((300, 2), jnp.bfloat16).at[0].set(4096)
    trimmed = aggregation.trimmed_mean_rows(rows, 1)
    assert trimmed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(trimmed.astype(np.float32), 1)
    long = aggregation.trimmed_mean_rows(jnp.ones((600, 2), jnp.bfloat16), 20)
    np.testing.assert_array_equal(long.astype(np.float32), 1)
    mean = dx.weighted_mean(jnp.ones((600, 2), jnp.bfloat16), jnp.ones(600, jnp.bfloat16))
    np.testing.assert_array_equal(mean.astype(np.float32), 1)
    # A step of 2^-8 beside a mean of 1: rescaled in float32, and rounded once.
    kernel = jnp.asarray(1 + np.array([[[-1.0, 1.0], [1.0, -1.0]]]) / 128, jnp.bfloat16)
    corrected, _ = aggregation.rescaled({"w": kernel}, jnp.full((1, 1), 4.0 / 128**2))
    expected = 1 + 2 * (kernel.astype(np.float32) - 1)
    np.testing.assert_array_equal(corrected["w"].astype(np.float32), expected)


@pytest.mark.parametrize("rows", [17, 63, 64])
def test_a_gram_matrix_is_that_of_float64_at_any_number_of_rows(rows):
    # Two blocks of columns and a rest.
    values = np.random.default_rng(rows).normal(1.0, 2.0, (rows, 16_700)).astype(np.float32)
    found = np.asarray(jax.jit(aggregation.gram)(values))
    exact = values.astype(np.float64)
    np.testing.assert_allclose(found, exact @ exact.T, rtol=2e-5, atol=2e-2)
    np.testing.assert_array_equal(found, found.T)
    distances = np.asarray(jax.jit(aggregation.squared_distances)(values))
    wanted = ((exact[:, None] - exact) ** 2).sum(-1)
    np.testing.assert_allclose(distances, wanted, rtol=2e-5, atol=1e-2)
    # A last row for the model 0.
    products, finite = jax.jit(lambda x: robust_products(x, origin=True))(values)
    assert finite.all()
    np.testing.assert_array_equal(products, products.T)
    np.testing.assert_allclose(distances_of(products)[:-1, :-1], wanted, rtol=2e-5, atol=1e-2)
    np.testing.assert_allclose(distances_of(products)[-1, :-1], (exact**2).sum(-1), rtol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_row_is_finite_unless_one_of_its_numbers_is_not(broken, dtype):
    # Wherever it stands, and however large the others are.
    large = jnp.finfo(dtype).max
    rows = jnp.full((5, 37), large, dtype).at[:, ::2].set(-large)
    rows = rows.at[1, 0].set(broken).at[2, 18].set(broken).at[3, 36].set(broken)
    tree = {"w": rows.reshape(5, 37, 1), "b": jnp.ones((5, 2), dtype)}
    found = jax.jit(aggregation.finite_rows)(tree)
    assert found.tolist() == [True, False, False, False, True]
    several = jax.vmap(aggregation.finite_rows)(jax.tree.map(lambda x: jnp.stack([x, x]), tree))
    assert several.tolist() == [found.tolist()] * 2
