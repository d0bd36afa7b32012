"""Each rule keeps its promise when as many messages are arbitrary as its docstring allows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dflax import aggregation
from dflax.aggregation import Combining

KEY = jax.random.key(0)
ROWS, WIDTH = 9, 3
BROKEN = (np.nan, np.inf, -np.inf)
FAR = (0.0, -1e3, 1e7, -1e12, 1e17)


@jax.jit
def rules(messages, weights):
    """What every rule makes of the same messages: one program for all cases."""
    made = {
        "median": aggregation.median(),
        "trimmed mean": aggregation.trimmed_mean(2),
        "geometric median": aggregation.geometric_median(200, 1e-3),
        "vote": aggregation.majority_vote(),
    }
    out = {
        name: rule.apply(messages, weights, (), Combining(KEY))[::2] for name, rule in made.items()
    }
    lower = aggregation.weighted_median_rows(messages, weights)
    return out | {"distances": aggregation.squared_distances(messages, weights), "lower": lower}


def spoilt(generator, count, values):
    """Rows of which each entry is one of the values, or all entries are the same."""
    rows = generator.choice(values, (count, WIDTH))
    alike = generator.random(count) < 0.5
    return np.where(alike[:, None], rows[:, :1], rows)


def between(out, honest):
    slack = 1e-5 * np.abs(honest).max()
    assert (out >= honest.min(0) - slack).all(), (out, honest)
    assert (out <= honest.max(0) + slack).all(), (out, honest)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, ROWS))
def test_fewer_than_half_of_the_messages_move_no_coordinate_beyond_the_others(seed, reporting):
    generator = np.random.default_rng(seed)
    arbitrary = generator.integers(0, (reporting - 1) // 2 + 1)
    rows = generator.normal(3.0, 1.0, (ROWS, WIDTH))
    rows[:arbitrary] = spoilt(generator, arbitrary, (*BROKEN, *FAR))
    rows[reporting:] = spoilt(generator, ROWS - reporting, BROKEN)
    # Of light and heavy clients alike: here everyone has one say.
    weights = generator.uniform(0.01, 10.0, ROWS) * (np.arange(ROWS) < reporting)
    order = generator.permutation(ROWS)
    honest = rows[arbitrary:reporting]
    out = rules(rows[order].astype(np.float32), weights[order].astype(np.float32))
    between(out["median"][0], honest)
    if arbitrary <= 2:
        between(out["trimmed mean"][0], honest)
        assert out["trimmed mean"][1]["trimmed"] == 2


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, ROWS - 1), st.floats(0.0, 0.45))
# A message of zeros, where the median starts, and all others far from there.
@example(169268, 4, 0.4389728228073212)
@example(352817, 4, 0.45)
@example(123004, 8, 0.449)
def test_a_minority_of_the_weight_moves_nothing_far(seed, arbitrary, share):
    generator = np.random.default_rng(seed)
    center = generator.normal(0.0, 5.0, WIDTH)
    away = generator.normal(size=(ROWS, WIDTH))
    away *= generator.uniform(0, 1, (ROWS, 1)) / np.linalg.norm(away, axis=1, keepdims=True)
    rows, weights = center + away, generator.uniform(0.1, 10.0, ROWS)
    rows[:arbitrary] = spoilt(generator, arbitrary, FAR)
    honest_weight = weights[arbitrary:].sum()
    weights[:arbitrary] *= share / (1 - share) * honest_weight / weights[:arbitrary].sum()
    honest = rows[arbitrary:].copy()
    # And some more that are broken, whatever they weigh: they leave.
    broken = spoilt(generator, 3, BROKEN)
    rows = np.concatenate([rows[:arbitrary], broken, honest])[-ROWS:]
    own = generator.uniform(0.1, 100.0, 3)
    weights = np.concatenate([weights[:arbitrary], own, weights[arbitrary:]])[-ROWS:]
    order = generator.permutation(ROWS)
    out = rules(rows[order].astype(np.float32), weights[order].astype(np.float32))
    combined, metrics = out["geometric median"]
    bound = 2 * (1 - share) / (1 - 2 * share)
    assert np.linalg.norm(combined - center) <= 1.05 * bound + 0.01, (combined, center)
    assert metrics["messages_dropped"] == (~np.isfinite(rows).all(1)).sum()
    # Distances among the honest keep their digits.
    places = np.argsort(order)[-len(honest) :]
    found = np.asarray(out["distances"])[np.ix_(places, places)]
    exact = ((honest[:, None] - honest) ** 2).sum(-1)
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=3e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, ROWS - 1), st.floats(0.0, 0.49))
def test_the_heavier_part_decides_medians_by_weight_and_votes(seed, arbitrary, share):
    generator = np.random.default_rng(seed)
    signs = generator.choice((-1.0, 1.0), WIDTH)
    rows, weights = signs * generator.uniform(0.5, 2.0, (ROWS, WIDTH)), generator.random(ROWS) + 0.1
    rows[:arbitrary] = spoilt(generator, arbitrary, (*BROKEN, *FAR))
    weights[:arbitrary] *= (
        share / (1 - share) * weights[arbitrary:].sum() / weights[:arbitrary].sum()
    )
    order = generator.permutation(ROWS)
    out = rules(rows[order].astype(np.float32), weights[order].astype(np.float32))
    between(out["lower"], rows[arbitrary:])
    np.testing.assert_array_equal(out["vote"][0], signs)


def test_broken_messages_leave_before_anything_is_centred_on_them():
    apply = jax.jit(aggregation.geometric_median(50).apply)
    distances = jax.jit(aggregation.squared_distances)
    weights = jnp.array([10.0, 10.0, 0.1, 0.1, 0.1])
    for value in (*BROKEN, 1e12, 3e38):
        messages = jnp.array([[5.0], [5.1], [value], [value], [value]])
        out, _, metrics = apply(messages, weights, (), Combining(KEY))
        np.testing.assert_allclose(out, 5.05, atol=2e-3)
        assert metrics["messages_dropped"] == (3 if not 1e-9 < abs(value) < 1e38 else 0)
        near = distances(messages, weights)
        np.testing.assert_allclose(near[0, 1], 0.01, rtol=1e-4)


@pytest.mark.some(2)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 6, 200])
def test_the_median_by_weight_is_numpys(dtype, rows):
    generator = np.random.default_rng(rows)
    values = jnp.asarray(generator.normal(size=(rows, 5)), dtype)
    weights = generator.integers(0, 4, rows).astype(np.float32)
    weights[0] = 1
    spoilt = jnp.where(weights[:, None] > 0, values, jnp.nan)
    out = jax.jit(aggregation.weighted_median_rows)(spoilt, weights)
    exact = np.asarray(values, np.float64)
    order = np.argsort(exact, 0)
    reached = weights[order].cumsum(0) >= weights.sum() / 2
    expected = np.take_along_axis(exact, order, 0)[reached.argmax(0), np.arange(5)]
    np.testing.assert_array_equal(np.asarray(out, np.float64), expected)
    assert out.dtype == dtype
    nobody = jax.jit(aggregation.weighted_median_rows)(spoilt, np.zeros(rows, np.float32))
    np.testing.assert_array_equal(nobody.astype(np.float32), 0)
