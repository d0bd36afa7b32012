import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax.data.dataset import Batch
from dflax.local import adversarial, distances, projected_gradient, trades

KEY = jax.random.key(0)
GENERATOR = np.random.default_rng(0)
W = jnp.asarray(GENERATOR.normal(size=4), jnp.float32)
BATCH = Batch(
    jnp.asarray(GENERATOR.normal(size=(10, 4)), jnp.float32),
    jnp.asarray(GENERATOR.choice([-1.0, 1.0], 10), jnp.float32),
)
RADIUS = 0.3


def logistic(w, batch, key):
    loss = jnp.mean(jnp.logaddexp(0.0, -batch.labels * (batch.inputs @ w)))
    return loss, {"loss": loss}


ATTACK = projected_gradient(logistic, RADIUS, 3, random_start=False)


def test_the_gradient_is_that_of_the_worst_case_by_danskins_theorem():
    def worst(w):
        margins = BATCH.labels * (BATCH.inputs @ w) - RADIUS * jnp.linalg.norm(w)
        return jnp.mean(jnp.logaddexp(0.0, -margins))

    seen, metrics = adversarial(logistic, ATTACK)(W, BATCH, KEY)
    value, expected = jax.value_and_grad(worst)(W)
    np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["perturbation"], RADIUS, rtol=1e-5)


@pytest.mark.parametrize(("share", "attacked"), [(0.0, 0), (0.3, 3), (0.31, 4), (1.0, 10)])
def test_a_share_of_the_minibatch_is_attacked(share, attacked):
    seen, _ = adversarial(logistic, ATTACK, share=share)(W, BATCH, KEY)
    moved = ATTACK(W, BATCH, KEY).inputs
    inputs = jnp.concatenate([moved[:attacked], BATCH.inputs[attacked:]])
    expected, _ = dx.local.gradient(logistic)(W, BATCH._replace(inputs=inputs), KEY)
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-7)


def test_another_model_can_be_attacked_than_the_one_that_learns():
    seen, _ = adversarial(logistic, ATTACK, at=-W)(W, BATCH, KEY)
    expected, _ = dx.local.gradient(logistic)(W, ATTACK(-W, BATCH, KEY), KEY)
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-7)


def scores(params, inputs):
    return inputs @ params


CLASSES = Batch(BATCH.inputs, jnp.asarray(GENERATOR.integers(0, 3, 10), jnp.int32))
PARAMS = jax.random.normal(KEY, (4, 3))
CLEAN = dx.losses.classification(scores)


def test_trades_adds_the_divergence_at_inputs_that_raise_it():
    def oracle(beta):
        return trades(CLEAN, scores, 0.5, 5, beta=beta)(PARAMS, CLASSES, KEY)

    found, measured = jax.jit(jax.vmap(oracle))(jnp.asarray([0.0, 1.0, 2.0]))
    none, half, seen = (jax.tree.map(lambda leaf, row=row: leaf[row], found) for row in range(3))
    metrics = {name: values[2] for name, values in measured.items()}
    clean, plain = dx.local.gradient(CLEAN)(PARAMS, CLASSES, KEY)
    np.testing.assert_allclose(metrics["loss"], plain["loss"], rtol=1e-6)
    assert metrics["divergence"] > 1e-3
    assert metrics["perturbation"] <= 0.5 * (1 + 1e-5)
    # beta 0 is the clean gradient; the gradient is affine in beta.
    assert_trees_close(none, clean, rtol=1e-5, atol=1e-6)
    middle = jax.tree.map(lambda a, b: 0.5 * (a + b), none, seen)
    assert_trees_close(half, middle, rtol=1e-4, atol=1e-6)


def test_trades_differentiates_the_divergence_of_both_models_outputs():
    """Against the definition written out, at the perturbation of the same key."""
    oracle = trades(CLEAN, scores, 0.5, 1, beta=1.0, step_size=1e-9)
    start = projected_gradient(lambda p, b, k: (0.0 * b.inputs.sum(), {}), 0.5, 1, step_size=1e-9)
    moved = start(PARAMS, CLASSES, jax.random.split(KEY, 3)[0]).inputs

    def written_out(params):
        p = jax.nn.softmax(scores(params, CLASSES.inputs))
        q = jax.nn.softmax(scores(params, moved))
        return CLEAN(params, CLASSES, None)[0] + jnp.mean(jnp.sum(p * jnp.log(p / q), 1))

    seen, _ = jax.jit(oracle.evaluate)(PARAMS, CLASSES, KEY)
    assert_trees_close(seen, jax.jit(jax.grad(written_out))(PARAMS), rtol=1e-4, atol=1e-5)


def test_an_attack_of_no_radius_is_the_plain_oracle():
    attack = projected_gradient(CLEAN, 0.0, 2)
    seen, _ = adversarial(CLEAN, attack)(PARAMS, CLASSES, KEY)
    assert_trees_equal(seen, dx.local.gradient(CLEAN)(PARAMS, CLASSES, KEY)[0])
    assert distances(CLASSES.inputs, CLASSES.inputs).max() == 0.0


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"share must be a finite number in \[0, 1\]"):
        adversarial(logistic, ATTACK, share=1.5)
    with pytest.raises(TypeError, match="attack must be a function"):
        adversarial(logistic, 0.5)
    with pytest.raises(ValueError, match="beta must be a finite number"):
        trades(CLEAN, scores, 0.5, 5, beta=-1.0)
    with pytest.raises(ValueError, match="random_start must stay True"):
        trades(CLEAN, scores, 0.5, 5, random_start=False)
