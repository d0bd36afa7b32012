import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import half_square

import dflax as dx
from dflax.data.dataset import Batch

KEY = jax.random.key(0)
GENERATOR = np.random.default_rng(0)
INPUTS, X = GENERATOR.normal(size=(5, 4)), GENERATOR.normal(size=4)
LABELS = GENERATOR.normal(size=5)
MASK = np.array([1.0, 0.0, 1.0, 1.0, 0.0])


def squares(params, batch, key):
    """Least squares that respect the mask; its gradients are (a x - b) a."""
    residuals = batch.inputs @ params["x"] - batch.labels
    mask = jnp.ones_like(residuals) if batch.mask is None else batch.mask
    loss = 0.5 * jnp.sum(mask * jnp.square(residuals)) / mask.sum()
    return loss, {"loss": loss, "large": loss > 1.0}


@pytest.mark.some(2)
@pytest.mark.parametrize("at_once", [None, 1, 2, 9])
@pytest.mark.parametrize("mask", [None, MASK])
def test_every_example_has_its_gradient(at_once, mask):
    with jax.enable_x64(True):
        batch = Batch(jnp.asarray(INPUTS), jnp.asarray(LABELS), mask)
        oracle = dx.local.per_example(squares, at_once=at_once)
        seen, metrics = jax.jit(oracle.evaluate)({"x": jnp.asarray(X)}, batch, KEY)
        whole, _ = dx.local.gradient(squares)({"x": jnp.asarray(X)}, batch, KEY)
    residuals = INPUTS @ X - LABELS
    counted = np.ones(5) if mask is None else mask
    expected = (counted * residuals)[:, None] * INPUTS
    np.testing.assert_allclose(seen["x"], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(metrics["loss"], counted * residuals**2 / 2, atol=1e-12)
    np.testing.assert_array_equal(metrics["large"], counted * residuals**2 / 2 > 1)
    mean = counted @ np.asarray(seen["x"]) / counted.sum()
    np.testing.assert_allclose(mean, whole["x"], rtol=0, atol=1e-12)


def test_examples_have_keys_of_their_own_and_masked_nan_counts_nothing():
    def noisy(params, batch, key):
        noise = jax.random.normal(key) + jnp.sum(batch.inputs)
        return noise * params["x"].sum(), {}

    inputs = jnp.zeros((5, 4)).at[1].set(jnp.nan)
    batch = Batch(inputs, jnp.zeros(5), jnp.asarray(MASK))
    seen, _ = dx.local.per_example(noisy)({"x": jnp.ones(2)}, batch, KEY)
    expected = MASK * jax.vmap(jax.random.normal)(jax.random.split(KEY, 5))
    np.testing.assert_allclose(seen["x"][:, 0], expected, rtol=1e-6)


def test_wrappers_go_around_it_and_within():
    clip = functools.partial(dx.local.clipped, norm=0.5)
    batch = Batch(jnp.asarray(INPUTS, jnp.float32), jnp.zeros(5, jnp.int32))
    seen, _ = dx.local.per_example(clip(half_square))(jnp.zeros(4), batch, KEY)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 0.5, rtol=1e-5)


def test_what_it_cannot_do_is_refused():
    batch = Batch(jnp.zeros((5, 4)), jnp.zeros(5))
    with pytest.raises(ValueError, match="params must hold no running statistics"):
        dx.local.per_example(half_square)({"params": X, "batch_stats": X}, batch, KEY)
    with pytest.raises(ValueError, match="at_once must be an integer >= 1, got 0"):
        dx.local.per_example(half_square, at_once=0)
    with pytest.raises(TypeError, match="loss must be a function"):
        dx.local.per_example(3)
    federation = dx.Federation(
        dx.data.Dataset(batch.inputs, batch.labels),
        dx.data.from_indices([[0], [1]]),
        batch_size=2,
        local_steps=1,
    )
    algorithm = dx.server.fedavg(dx.local.per_example(half_square), optax.sgd(0.1))
    state = algorithm.init(KEY, jnp.zeros(4))
    with pytest.raises(ValueError, match="gradient of an oracle must have shape"):
        dx.run(algorithm, state, federation, rounds=1, key=KEY)
