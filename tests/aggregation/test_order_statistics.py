import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dflax.aggregation import median_rows, sorted_rows, trimmed_mean_rows
from dflax.aggregation.rows import order_statistics
from dflax.aggregation.rows import sorting_network as network
from dflax.aggregation.rows.order_keys import from_keys, to_keys

COLUMNS = 5


def normal(rows, seed=0, columns=COLUMNS):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def trimmed(values, trim):
    ordered = np.sort(np.asarray(values, np.float64), 0)
    return ordered[trim : len(ordered) - trim].mean(0)


@pytest.mark.parametrize("wires", [1, 2, 3, 5, 8, 13])
def test_the_network_sorts_every_input_of_zeros_and_ones(wires):
    """By the 0-1 principle it then sorts everything."""
    bits = (np.arange(2**wires)[:, None] >> np.arange(wires)) & 1
    partner, smaller = network.stages(network.sorting(wires), wires)
    rows = bits.T.copy()
    staged = bits.T.copy()
    for i, j in network.sorting(wires):
        rows[i], rows[j] = np.minimum(rows[i], rows[j]), np.maximum(rows[i], rows[j])
    for other, low in zip(partner, smaller, strict=True):
        heard = staged[other]
        staged = np.where(low[:, None], np.minimum(staged, heard), np.maximum(staged, heard))
    np.testing.assert_array_equal(rows, np.sort(bits.T, 0))
    np.testing.assert_array_equal(staged, rows)


@pytest.mark.parametrize("wires", [50, 129, 300])
def test_a_network_for_some_ranks_puts_those_in_place(wires):
    ranks = (wires // 3, wires // 2)
    chosen = network.selecting(wires, ranks)
    assert len(chosen) < len(network.sorting(wires))
    rows = normal(wires, columns=64)
    out = rows.copy()
    for i, j in chosen:
        out[i], out[j] = np.minimum(out[i], out[j]), np.maximum(out[i], out[j])
    np.testing.assert_array_equal(out[list(ranks)], np.sort(rows, 0)[list(ranks)])


@pytest.mark.some(1)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_keys_are_in_the_order_of_the_numbers_and_give_them_back(dtype):
    least = jnp.finfo(dtype).smallest_subnormal
    values = [-jnp.inf, -3e4, -1.0, -least, -0.0, 0.0, least, 0.5, 1.0, 3e4, jnp.inf]
    values = jnp.asarray(values, dtype)
    keys = to_keys(values)
    assert np.all(np.diff(np.asarray(keys, np.int64)) > 0)
    np.testing.assert_array_equal(from_keys(keys, dtype).astype(float), values.astype(float))
    nan = to_keys(jnp.asarray([jnp.nan, -jnp.nan], dtype))
    assert nan[0] == nan[1] > keys[-1]
    assert np.isnan(from_keys(nan, dtype).astype(np.float32)).all()


@pytest.mark.some(2)
# 9 and 10 are unrolled; staged networks run for any number of rows, here beyond the limit.
@pytest.mark.parametrize("rows", [1, 2, 9, 10, order_statistics.UNROLLED + 3])
def test_statistics_equal_those_of_numpy(rows):
    values = normal(rows)
    np.testing.assert_array_equal(jax.jit(sorted_rows)(values), np.sort(values, 0))
    middle = np.median(values.astype(np.float64), 0)
    np.testing.assert_allclose(jax.jit(median_rows)(values), middle, rtol=1e-6, atol=1e-7)
    trim = (rows - 1) // 3
    out = jax.jit(trimmed_mean_rows, static_argnums=1)(values, trim)
    np.testing.assert_allclose(out, trimmed(values, trim), rtol=1e-5, atol=1e-6)


@pytest.mark.some(1)
@pytest.mark.parametrize("rows", [7, 8, order_statistics.UNROLLED + 1])
def test_absent_rows_do_not_count_whatever_they_hold(rows):
    values = normal(rows)
    trim = 2
    masks = np.stack([np.arange(rows) % 7 < present for present in range(8)])
    masks = np.stack([np.random.default_rng(i).permutation(m) for i, m in enumerate(masks)])
    spoilt = np.where(masks[..., None], values, np.float32(np.nan))
    spoilt[:, :, 1] = np.where(masks, values[:, 1], np.inf)

    @jax.jit
    @jax.vmap
    def all_of(values, mask):
        return (
            median_rows(values, mask),
            trimmed_mean_rows(values, trim, mask),
            sorted_rows(values, mask),
        )

    medians, means, ordered = all_of(spoilt, masks)
    np.testing.assert_array_equal(medians[0], 0)
    np.testing.assert_array_equal(means[0], 0)
    for number, mask in enumerate(masks[1:], 1):
        those = values[mask]
        fewer = min(trim, (len(those) - 1) // 2)
        np.testing.assert_allclose(medians[number], np.median(those, 0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(means[number], trimmed(those, fewer), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(ordered[number][: len(those)], np.sort(those, 0))
        assert np.isnan(ordered[number][len(those) :]).all()


def test_infinities_and_nans_are_values_at_the_ends():
    values = jnp.array([[1.0], [2.0], [-jnp.inf], [jnp.nan], [3.0], [-jnp.nan], [jnp.inf]])
    np.testing.assert_array_equal(sorted_rows(values)[:, 0], np.sort(np.asarray(values)[:, 0]))
    assert median_rows(values)[0] == 3
    assert trimmed_mean_rows(values, 3)[0] == 3
    assert trimmed_mean_rows(values, 2)[0] == jnp.inf
    assert jnp.isnan(trimmed_mean_rows(values, 1)[0])
    # The two middle ones are added without overflow.
    large = jnp.array([[3e38], [3.2e38], [0.0], [jnp.nan]])
    np.testing.assert_allclose(median_rows(large), 3.1e38, rtol=1e-6)


MEDIAN, TRIMMED = jax.jit(median_rows), jax.jit(trimmed_mean_rows, static_argnames="trim")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=6, max_size=6),
    st.permutations(range(6)),
    st.integers(0, 2),
)
def test_statistics_ignore_the_order_and_stay_between_the_extremes(column, order, trim):
    column = np.asarray(column, np.float32)[:, None]
    for statistic in (MEDIAN, functools.partial(TRIMMED, trim=trim)):
        out = np.asarray(statistic(column))
        np.testing.assert_array_equal(out, np.asarray(statistic(column[list(order)])))
        slack = 1e-6 * np.abs(column).max()
        assert column.min() - slack <= out[0] <= column.max() + slack
    np.testing.assert_allclose(
        TRIMMED(column / 8, trim=0)[0],
        np.mean(column / 8, dtype=np.float64),
        rtol=1e-5,
        atol=1e-6 * np.abs(column).max() + 1e-30,
    )


@pytest.mark.slow
def test_a_gradient_goes_to_the_rows_that_were_taken():
    values = jnp.array([[1.0, 9.0], [2.0, 8.0], [3.0, 7.0], [4.0, 6.0], [100.0, -5.0]])
    present = jnp.array([True, True, True, True, False])

    def total(function):
        return jax.grad(lambda values: jnp.vdot(function(values), jnp.array([1.0, 10.0])))(values)

    np.testing.assert_allclose(total(median_rows)[2], [1.0, 10.0])
    masked = total(lambda values: median_rows(values, present))
    np.testing.assert_allclose(masked, [[0, 0], [0.5, 5], [0.5, 5], [0, 0], [0, 0]])
    means = total(lambda values: trimmed_mean_rows(values, 1))
    np.testing.assert_allclose(means.sum(0), [1, 10], rtol=1e-6)
    np.testing.assert_allclose(means[:, 0], np.array([0, 1, 1, 1, 0]) / 3, rtol=1e-6)
    lowest = total(lambda values: sorted_rows(values)[0])
    np.testing.assert_array_equal(lowest, [[1, 0], [0, 0], [0, 0], [0, 0], [0, 10]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: median_rows(jnp.ones((3, 2), jnp.int32)), "values must hold real numbers"),
        (lambda: median_rows(jnp.ones(3)), r"values must be one row per client, \[n, d\]"),
        (lambda: median_rows(jnp.ones((0, 3))), "n >= 1"),
        (lambda: sorted_rows(jnp.ones((3, 2)), jnp.ones(2)), r"a mask of shape \(3,\), got \(2,\)"),
        (
            lambda: trimmed_mean_rows(jnp.ones((4, 2)), 2),
            r"trim must be an integer in \[0, 1\], got 2. Each side of 4 rows",
        ),
        (lambda: trimmed_mean_rows(jnp.ones((4, 2)), 0.1), "trim must be an integer"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
