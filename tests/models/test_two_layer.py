import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx

KEY = jax.random.key(0)
NET = dx.models.TwoLayer(64)
X = jax.random.normal(KEY, (9, 5))
PARAMS = NET.init(KEY, X)["params"]


def test_it_is_the_sum_over_units_and_starts_at_zero():
    u, b, a = (np.asarray(PARAMS[name], np.float64) for name in ("hidden", "bias", "signs"))
    moved = u + np.random.default_rng(0).normal(size=u.shape)
    expected = np.maximum(np.asarray(X, np.float64) @ moved.T + b, 0) @ a
    changed = PARAMS | {"hidden": jnp.asarray(moved, jnp.float32)}
    np.testing.assert_allclose(NET.apply({"params": changed}, X), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(NET.apply({"params": PARAMS}, X), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.abs(a), 64 ** (-1 / 3), rtol=1e-6)
    np.testing.assert_array_equal(a[:32], -a[32:])
    np.testing.assert_array_equal(u[:32], u[32:])


def test_only_the_hidden_layer_learns():
    slopes = jax.grad(lambda p: NET.apply({"params": p}, X).sum())(PARAMS)
    assert not np.any(slopes["bias"])
    assert not np.any(slopes["signs"])
    assert np.any(slopes["hidden"])


@pytest.mark.parametrize(("width", "message"), [(7, "width must be even"), (0, "width must be an")])
def test_bad_arguments_are_refused(width, message):
    with pytest.raises(ValueError, match=message):
        dx.models.TwoLayer(width)
