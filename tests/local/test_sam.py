import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, assert_trees_equal, half_square, quadratics

import dflax as dx
from dflax.data.dataset import Batch

KEY = jax.random.key(0)
BATCH = Batch(jnp.asarray([[1.0, -2.0, 0.5]]), jnp.zeros(1, jnp.int32))
PARAMS = jnp.asarray([0.3, 0.1, -0.2])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_on_a_quadratic_the_gradient_grows_by_the_perturbation(weight):
    """grad f(x + e) = g + e, so q = g (1 + weight rho / |g|)."""
    g = np.asarray(PARAMS - BATCH.inputs[0], np.float64)
    seen, metrics = dx.local.sam(half_square, 0.5, weight=weight)(PARAMS, BATCH, KEY)
    np.testing.assert_allclose(seen, g * (1 + weight * 0.5 / np.linalg.norm(g)), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 0.5 * (g @ g), rtol=1e-6)
    raw, _ = dx.local.sam(half_square, 0.5, weight=weight, normalize=False)(PARAMS, BATCH, KEY)
    np.testing.assert_allclose(raw, g * (1 + weight * 0.5), rtol=1e-6)


def test_the_perturbation_spans_the_whole_tree_and_has_length_rho():
    tree = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}
    moved = dx.local.perturbed(tree, tree, 0.1)
    shift = jax.tree.map(jnp.subtract, moved, tree)
    np.testing.assert_allclose(optax.tree.norm(shift), 0.1, rtol=1e-5)
    assert_trees_close(shift, jax.tree.map(lambda x: 0.02 * x, tree), rtol=1e-5)


def test_where_the_gradient_vanishes_nothing_is_divided_by_zero():
    seen, _ = dx.local.sam(half_square, 0.5)(BATCH.inputs[0], BATCH, KEY)
    np.testing.assert_array_equal(seen, np.zeros(3))


def test_radius_zero_is_the_plain_oracle_and_a_linear_loss_has_the_same_gradient_everywhere():
    plain, _ = dx.local.gradient(half_square)(PARAMS, BATCH, KEY)
    assert_trees_equal(dx.local.sam(half_square, 0.0)(PARAMS, BATCH, KEY)[0], plain)

    def linear(params, batch, key):
        return jnp.vdot(params, batch.inputs[0]), {}

    seen, _ = dx.local.sam(linear, 3.0)(PARAMS, BATCH, KEY)
    np.testing.assert_allclose(seen, BATCH.inputs[0], rtol=1e-6)


def test_the_radius_can_be_swept_in_one_program():
    task = quadratics()

    def end(rho):
        algorithm = dx.server.fedavg(dx.local.sam(half_square, rho), optax.sgd(0.1))
        state = algorithm.init(KEY, jnp.ones(3))
        return dx.rollout(algorithm, state, task.federation(2), KEY, 3)[0].server.params

    radii = jnp.asarray([0.0, 0.1, 0.3])
    swept = jax.jit(jax.vmap(end))(radii)
    for rho, params in zip(radii, swept, strict=True):
        np.testing.assert_allclose(params, jax.jit(functools.partial(end, rho))(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -0.1}, "radius must be a finite number in"),
        ({"radius": 0.1, "weight": 1.5}, "weight must be a finite number in"),
        ({"radius": 0.1, "normalize": 1}, "normalize must be True or False"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        dx.local.sam(half_square, **options)
