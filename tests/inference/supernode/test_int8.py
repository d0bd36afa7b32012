"""INT8 against NumPy: bounds, invariances, exact identities, layers and experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.inference import supernode as sn
from dflax.models.moe.layer import Dispatch, mixture
from dflax.models.moe.routing import route

RNG = np.random.default_rng(4)
X = RNG.normal(size=(40, 24)).astype(np.float32)
W = RNG.normal(size=(24, 10)).astype(np.float32)
APPLIED = jax.jit(sn.int8_apply)
OUTLIERS = X * np.where(np.arange(24) == 3, 30.0, 1.0).astype(np.float32)


def test_rounding_is_off_by_half_a_step_and_follows_the_scale():
    rows, columns = sn.quantised_rows(X), sn.quantised_columns(W)
    assert (np.abs(X - rows.real) <= 0.5001 * np.asarray(rows.scale)).all()
    assert (np.abs(W - columns.real) <= 0.5001 * np.asarray(columns.scale)).all()
    np.testing.assert_array_equal(sn.quantised_rows(8.0 * X).values, rows.values)
    np.testing.assert_array_equal(sn.quantised_rows(np.zeros((2, 3))).real, np.zeros((2, 3)))


def test_sums_are_integers_of_32_bits():
    rows, columns = sn.quantised_rows(X), sn.quantised_columns(W)
    text = str(jax.make_jaxpr(sn.quantised_product)(rows, columns))
    assert "preferred_element_type=int32" in text
    exact = np.asarray(rows.values, np.int64) @ np.asarray(columns.values, np.int64)
    wanted = np.asarray(rows.scale, np.float64) * np.asarray(columns.scale, np.float64) * exact
    np.testing.assert_allclose(sn.quantised_product(rows, columns), wanted, rtol=1e-6)


def test_smoothing_changes_nothing_before_rounding():
    factors = np.asarray(sn.smoothing_factors(OUTLIERS, W, 0.5), np.float64)
    smoothed = (OUTLIERS / factors) @ (factors[:, None] * W)
    np.testing.assert_allclose(smoothed, OUTLIERS.astype(np.float64) @ W, atol=1e-10 * 1e3)
    wanted = np.sqrt(np.abs(OUTLIERS).max(0)) / np.sqrt(np.abs(W).max(1))
    np.testing.assert_allclose(factors, wanted, rtol=1e-5)
    dead = np.where(np.arange(24) == 5, 0.0, X).astype(np.float32)
    np.testing.assert_allclose(sn.smoothing_factors(dead, W, 0.5)[5], 1.0)
    np.testing.assert_allclose(sn.smoothing_factors(X, W, 0.0), 1.0)


def off(layer, inputs, weights=W):
    return float(np.mean(np.square(APPLIED(layer, inputs) - inputs @ weights)))


def test_each_remedy_brings_the_outputs_closer():
    # A weight that only an outlier reads: plain tokens lose their small channels.
    small = np.where(np.arange(24)[:, None] == 3, W / 30.0, W).astype(np.float32)
    plain = off(sn.int8_linear(small, OUTLIERS), OUTLIERS, small)
    smooth = off(sn.int8_linear(small, OUTLIERS, smooth=0.5), OUTLIERS, small)
    assert smooth < 0.05 * plain
    narrow = off(sn.int8_linear(W, X, search=True), X)
    assert narrow <= off(sn.int8_linear(W, X), X)
    # A grid whose largest share is all the old scale: no channel's weights get worse.
    found = sn.searched(W, X)
    share = np.asarray(found.scale / sn.quantised_columns(W).scale)
    assert share.min() >= 0.5 - 1e-6
    assert share.max() <= 1.0 + 1e-6


def test_the_bias_takes_up_the_mean_error():
    shifted = X + 3.0
    layer = sn.int8_linear(W, shifted, compensate=True, bias=np.ones(10))
    error = shifted.mean(0) @ (W - np.asarray(layer.weights.real))
    np.testing.assert_allclose(layer.bias, 1.0 + error, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_layer_takes_any_shape_and_is_swept():
    layers = jax.vmap(lambda a: sn.int8_linear(W, OUTLIERS, smooth=a))(jnp.array([0.0, 0.5]))
    x = jnp.asarray(OUTLIERS).reshape(4, 10, 24)
    found = jax.vmap(sn.int8_apply, (0, None))(layers, x)
    assert found.shape == (2, 4, 10, 10)
    for place, a in enumerate((0.0, 0.5)):
        one = APPLIED(sn.int8_linear(W, OUTLIERS, smooth=a), OUTLIERS)
        np.testing.assert_allclose(found[place].reshape(40, 10), one, rtol=1e-4, atol=1e-3)


def test_experts_in_int8_are_near_the_layer():
    keys = jax.random.split(jax.random.key(1), 5)
    shapes = ((4, 24, 12), (4, 24, 12), (4, 12, 24))
    matrices = tuple(0.3 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=False))

    @jax.jit
    def both(matrices, x, scores):
        routing = route(scores, 2)
        experts = sn.int8_experts(matrices, x, smooth=0.5)
        exact = mixture(x, matrices, routing, Dispatch.DENSE)
        return exact, sn.int8_mixture(experts, x, routing)

    exact, found = both(matrices, X, jax.random.normal(keys[4], (40, 4)))
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.03


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sn.int8_linear(W, X[:, 1:]), "inputs must have a column"),
        (lambda: sn.int8_linear(W, X, smooth=1.5), "smooth must be"),
        (lambda: sn.int8_apply(sn.int8_linear(W, X), X.T), "x must have a last axis of length 24"),
        (lambda: sn.int8_experts((W, W), X), "matrices must be"),
    ],
)
def test_wrong_layers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
