import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import assert_trees_equal, half_square, quadratics

import dflax as dx
from dflax import aggregation
from dflax.aggregation import Combining

KEY = jax.random.key(0)


def everything(path, leaf):
    return True


def models(count=5, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(generator.normal(2.0, 3.0, (count, 40, 60)), jnp.float32),
        "bias": jnp.asarray(generator.normal(size=(count, 7)), jnp.float32),
    }


def test_variances_are_those_of_numpy_in_float64():
    stacked = models()
    stacked["kernel"] += 1000.0
    expected = np.asarray(stacked["kernel"], np.float64).reshape(5, -1).var(1)
    np.testing.assert_allclose(aggregation.variances(stacked)[:, 0], expected, rtol=1e-5)
    both = aggregation.variances(stacked, everything)
    np.testing.assert_allclose(
        both[:, 0], np.asarray(stacked["bias"], np.float64).var(1), rtol=1e-5
    )
    assert both.shape == (5, 2)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100.0))
def test_after_rescaling_the_variance_is_the_target_and_the_mean_stays(seed, scale):
    stacked = models(seed=seed)
    target = scale * jnp.arange(1.0, 6.0)[:, None]
    corrected, factors = aggregation.rescaled(stacked, target)
    np.testing.assert_allclose(aggregation.variances(corrected), target, rtol=1e-4)
    before, after = (np.asarray(tree["kernel"]).reshape(5, -1) for tree in (stacked, corrected))
    np.testing.assert_allclose(
        after.mean(1), before.mean(1), atol=1e-4 * np.abs(after).max(), rtol=1e-4
    )
    np.testing.assert_array_equal(corrected["bias"], stacked["bias"])
    np.testing.assert_allclose(
        factors[:, 0], np.sqrt(np.asarray(target)[:, 0] / before.var(1)), rtol=1e-4
    )


def test_the_published_example_by_hand():
    """Own (1,-1,1,-1), one received (1,1,-1,-1), equal weights: (1,0,0,-1) of variance 1/2, wanted 1."""
    mixed = jnp.asarray([[1.0, 0.0, 0.0, -1.0]])
    corrected, _ = aggregation.rescaled(mixed, jnp.ones((1, 1)), everything)
    np.testing.assert_allclose(corrected[0], [2**0.5, 0, 0, -(2**0.5)], rtol=1e-6)
    # With unbiased variances 2/3 and 4/3 and epsilon 1e-4, as in the authors' later code.
    corrected, _ = aggregation.rescaled(
        mixed, jnp.full((1, 1), 4 / 3) * 3 / 4, everything, epsilon=0.75e-4
    )
    np.testing.assert_allclose(corrected[0], [1.4141606, 0, 0, -1.4141606], rtol=1e-6)


def test_tensors_that_are_constant_stay_and_strength_blends():
    flat = jnp.full((2, 3, 3), 0.7)
    corrected, factors = aggregation.rescaled(flat, jnp.ones((2, 1)))
    np.testing.assert_array_equal(corrected, flat)
    np.testing.assert_array_equal(factors, 1.0)
    stacked = models()
    target = 4 * aggregation.variances(stacked)
    _, factors = aggregation.rescaled(stacked, target, strength=0.5)
    np.testing.assert_allclose(factors, 1.5, rtol=1e-5)
    same, _ = aggregation.rescaled(stacked, target, strength=0.0)
    np.testing.assert_allclose(same["kernel"], stacked["kernel"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [np.ones(5), np.array([1.0, 0.0, 2.0, 0.5, 0.0])])
def test_the_aggregate_has_the_mean_variance_of_those_who_count(weights):
    stacked = models()
    # Who did not report may hold anything.
    stacked["bias"] = jnp.where(jnp.asarray(weights)[:, None] > 0, stacked["bias"], 0.0)
    rule = aggregation.variance_corrected()
    one = jax.tree.map(lambda leaf: leaf[0], stacked)
    combined, _, metrics = rule.apply(stacked, jnp.asarray(weights), rule.init(one), Combining(KEY))
    flat = np.asarray(stacked["kernel"], np.float64).reshape(5, -1)
    plain, wanted = weights @ flat / weights.sum(), weights @ flat.var(1) / weights.sum()
    expected = plain.mean() + np.sqrt(wanted / plain.var()) * (plain - plain.mean())
    np.testing.assert_allclose(combined["kernel"].reshape(-1), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(metrics["variance_scale"], np.sqrt(wanted / plain.var()), rtol=1e-4)
    assert metrics["variance_scale"] > 1.3
    expected = weights @ np.asarray(stacked["bias"]) / weights.sum()
    np.testing.assert_allclose(combined["bias"], expected, rtol=1e-4, atol=1e-6)


def test_equal_models_pass_unchanged_and_a_round_without_reports_gives_zero():
    stacked = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], 5, 0), models())
    rule = aggregation.variance_corrected()
    combined, _, metrics = rule.apply(stacked, jnp.ones(5), (), Combining(KEY))
    np.testing.assert_allclose(combined["kernel"], stacked["kernel"][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(metrics["variance_scale"], 1.0, rtol=1e-5)
    nothing, _, _ = rule.apply(stacked, jnp.zeros(5), (), Combining(KEY))
    assert_trees_equal(nothing, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), stacked))


def test_a_server_that_averages_models_takes_it():
    """Clients send whole models; with the model's own variance as target one round equals plain math."""
    task = quadratics(clients=4, dimension=6)
    solve = dx.local.solver(half_square, optax.sgd(1.0))

    def work(assignment, own, server, data, index):
        solution = solve(dx.local.Subproblem(), server.params, assignment, data, index=index)
        return dx.server.Report(solution.params, own, solution.metrics)

    algorithm = dx.server.with_server(
        lambda key, params: ((), ()),
        work,
        lambda server, received: (received.message, (), {}),
        aggregator=aggregation.variance_corrected(choose=everything),
    )
    state = algorithm.init(KEY, jnp.zeros(6))
    end, metrics = jax.jit(functools.partial(dx.rollout, algorithm, rounds=1))(
        state, task.federation(), KEY
    )
    plain = task.centers.mean(0)
    scale = np.sqrt(task.centers.var(1).mean() / plain.var())
    expected = plain.mean() + scale * (plain - plain.mean())
    np.testing.assert_allclose(end.server.params, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["variance_scale"][0], scale, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregator": 3}, "aggregator must be of type Aggregator"),
        ({"choose": 3}, "choose must be a function"),
        ({"strength": 1.01}, "strength must be .* compound from round to round"),
        ({"epsilon": -1.0}, "epsilon must be"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        aggregation.variance_corrected(**options)


def test_a_model_without_chosen_tensors_is_refused():
    with pytest.raises(ValueError, match="choose must take at least one tensor"):
        aggregation.variance_corrected().apply(jnp.ones((3, 4)), jnp.ones(3), (), Combining(KEY))
