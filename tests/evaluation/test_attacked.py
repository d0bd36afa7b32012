import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import regression, softmax_loss

import dflax as dx
from dflax import evaluation

KEY = jax.random.key(3)
TASK = regression(clients=3, examples=50)
ATTACK = dx.local.projected_gradient(softmax_loss, 0.5, 3, random_start=False)
PARAMS = {"w": jax.random.normal(KEY, (5, 3)), "b": jnp.zeros(3)}


def test_it_is_the_exact_mean_over_attacked_examples_whatever_the_batches():
    moved = jax.jit(ATTACK)(PARAMS, TASK.data.fetch(jnp.arange(50)), KEY)
    _, expected = softmax_loss(PARAMS, moved, None)
    found = evaluation.attacked(softmax_loss, ATTACK, TASK.data, KEY, batch_size=17)(PARAMS)
    assert set(found) == {"robust_loss", "robust_accuracy"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[f"robust_{name}"], value, rtol=1e-5)
    first = evaluation.attacked(softmax_loss, ATTACK, TASK.data, KEY, examples=10)(PARAMS)
    _, ten = softmax_loss(PARAMS, jax.tree.map(lambda leaf: leaf[:10], moved), None)
    np.testing.assert_allclose(first["robust_loss"], ten["loss"], rtol=1e-5)


def test_an_attack_of_no_radius_measures_what_on_does():
    none = dx.local.projected_gradient(softmax_loss, 0.0, 1)
    plain = evaluation.on(softmax_loss, TASK.data)(PARAMS)
    found = evaluation.attacked(softmax_loss, none, TASK.data, KEY)(PARAMS)
    for name, value in plain.items():
        np.testing.assert_allclose(found[f"robust_{name}"], value, rtol=1e-6)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="key must be one typed JAX key"):
        evaluation.attacked(softmax_loss, ATTACK, TASK.data, 0)
    with pytest.raises(TypeError, match="attack must be a function"):
        evaluation.attacked(softmax_loss, None, TASK.data, KEY)
    with pytest.raises(TypeError, match="data must be a Dataset"):
        evaluation.attacked(softmax_loss, ATTACK, TASK.partition, KEY)
