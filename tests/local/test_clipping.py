import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import half_square

import dflax as dx
from dflax.data.dataset import Batch

KEY = jax.random.key(0)
BATCH = Batch(jnp.asarray([[3.0, 0.0, -4.0]]), jnp.zeros(1, jnp.int32))


@pytest.mark.parametrize(("norm", "length"), [(2.0, 2.0), (5.0, 5.0), (7.0, 5.0)])
def test_longer_gradients_are_cut_to_the_norm_and_shorter_ones_left(norm, length):
    seen, metrics = dx.local.clipped(half_square, norm)(jnp.zeros(3), BATCH, KEY)
    np.testing.assert_allclose(seen, -length / 5 * np.array([3.0, 0.0, -4.0]), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 12.5)


def test_a_vanishing_gradient_stays_zero():
    seen, _ = dx.local.clipped(half_square, 0.1)(BATCH.inputs[0], BATCH, KEY)
    np.testing.assert_array_equal(seen, 0.0)


def test_the_length_is_that_of_the_whole_tree():
    def loss(params, batch, key):
        return 3.0 * params["a"] + 4.0 * params["b"].sum(), {}

    params = {"a": jnp.float32(0.0), "b": jnp.zeros(1)}
    seen, _ = dx.local.clipped(loss, 1.0)(params, BATCH, KEY)
    np.testing.assert_allclose([seen["a"], seen["b"][0]], [0.6, 0.8], rtol=1e-6)


def test_running_statistics_neither_count_nor_are_clipped():
    def oracle(params, batch, key):
        return {"params": jnp.array([3.0, 4.0]), "batch_stats": jnp.array([12.0])}, {}

    seen, _ = dx.local.clipped(dx.local.Oracle(oracle), 1.0)({}, BATCH, KEY)
    np.testing.assert_allclose(seen["params"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(seen["batch_stats"], [12.0])


def test_the_proximal_term_is_not_clipped():
    """A step of rate 1 with pull 0.5 from 1 away: the clipped gradient, and the whole pull."""
    data = dx.data.Dataset(BATCH.inputs, BATCH.labels)
    assignment = dx.Assignment(jnp.zeros((1, 1), jnp.int32), jnp.int32(1), KEY)
    problem = dx.local.Subproblem(pull=0.5, anchor=jnp.ones(3))
    solve = dx.local.solver(dx.local.clipped(half_square, 1.0), optax.sgd(1.0))
    found = solve(problem, jnp.zeros(3), assignment, data).params
    np.testing.assert_allclose(found, np.array([0.6, 0.0, -0.8]) + 0.5, rtol=1e-6)


def test_the_norm_can_be_swept_and_must_be_positive():
    norms = jnp.asarray([1.0, 2.0])
    seen = jax.vmap(lambda c: dx.local.clipped(half_square, c)(jnp.zeros(3), BATCH, KEY)[0])(norms)
    np.testing.assert_allclose(jnp.linalg.norm(seen, axis=1), norms, rtol=1e-6)
    with pytest.raises(ValueError, match="norm must be a finite number in"):
        dx.local.clipped(half_square, 0.0)
