import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_close, half_square, quadratics, regression, softmax_loss

import dflax as dx

KEY = jax.random.key(0)
TASK = regression()
FEDERATION = dx.Federation(TASK.data, TASK.partition, batch_size=4, local_steps=1)
PARAMS = {
    "w": jnp.asarray(np.random.default_rng(3).normal(size=(5, 3)), jnp.float32),
    "b": jnp.ones(3),
}


GRADIENT = jax.jit(jax.grad(softmax_loss, has_aux=True))


@functools.cache
def expected():
    """Each client's gradient over the list of its own examples."""
    inputs, labels = np.asarray(TASK.data.inputs), np.asarray(TASK.data.labels)
    rows = [
        GRADIENT(PARAMS, dx.data.Batch(inputs[owned], labels[owned]), None)[0]
        for owned in map(np.asarray, TASK.partition.as_lists())
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


@pytest.mark.some(2)
@pytest.mark.parametrize(("batch_size", "at_once"), [(7, 1), (7, 8), (500, 8)])
def test_clients_of_unequal_sizes_give_the_mean_over_all_of_their_examples(batch_size, at_once):
    assert len(set(np.asarray(TASK.partition.sizes))) > 3
    found = dx.local.client_gradients(
        softmax_loss, FEDERATION, PARAMS, batch_size=batch_size, at_once=at_once
    )
    assert_trees_close(found, expected(), rtol=1e-4, atol=1e-6)


def test_a_large_sample_comes_close_and_depends_on_its_key():
    def sampled(key):
        return dx.local.client_gradients(
            softmax_loss, FEDERATION, PARAMS, examples=4000, key=key, batch_size=1000
        )

    first, second = sampled(KEY), sampled(jax.random.key(1))
    assert_trees_close(first, expected(), atol=0.05)
    assert np.abs(first["w"] - second["w"]).max() > 1e-4


def test_class_laws_are_sampled():
    laws = dx.data.resample(TASK.data.labels, np.eye(3))
    federation = dx.Federation(TASK.data, laws, batch_size=4, local_steps=1)
    found = dx.local.client_gradients(softmax_loss, federation, PARAMS, examples=3000, key=KEY)
    rows = np.flatnonzero(np.asarray(TASK.data.labels) == 1)
    of_class, _ = GRADIENT(PARAMS, TASK.data.fetch(jnp.asarray(rows)), None)
    np.testing.assert_allclose(found["w"][1], of_class["w"], atol=0.05)


def test_they_are_dealt_over_devices():
    with jax.set_mesh(dx.client_mesh()):
        found = dx.local.client_gradients(softmax_loss, FEDERATION, PARAMS, batch_size=7)
    assert_trees_close(found, expected(), rtol=1e-4, atol=1e-6)


def test_models_can_be_swept():
    task = quadratics()
    points = jnp.asarray([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    found = jax.jit(
        jax.vmap(lambda x: dx.local.client_gradients(half_square, task.federation(), x))
    )(points)
    np.testing.assert_allclose(found, points[:, None] - task.centers, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0, "key": KEY}, "examples must be an integer >= 1, got 0"),
        ({"examples": 10}, "key must be given with examples"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1"),
        ({"federation": TASK.data}, "federation must be of type Federation"),
        ({"key": 3}, "key must be one typed JAX key"),
        ({"params": 3.0}, "params must be an array of real numbers"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    given = {"federation": FEDERATION, "params": PARAMS} | options
    with pytest.raises((TypeError, ValueError), match=message):
        dx.local.client_gradients(softmax_loss, **given)


def test_clients_without_examples_of_their_own_must_be_sampled():
    laws = dx.data.resample(TASK.data.labels, np.eye(3))
    federation = dx.Federation(TASK.data, laws, batch_size=4, local_steps=1)
    with pytest.raises(ValueError, match="examples must be given"):
        dx.local.client_gradients(softmax_loss, federation, PARAMS)
