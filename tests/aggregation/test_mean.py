import jax
import jax.numpy as jnp
import numpy as np

from dflax import aggregation


def test_the_mean_ignores_clients_that_did_not_report():
    mean = aggregation.mean()
    messages = {"x": jnp.array([[1.0, 2.0], [5.0, 6.0], [100.0, 100.0]])}
    state = mean.init({"x": jnp.zeros(2)})
    out, state, metrics = mean.apply(messages, jnp.array([1.0, 3.0, 0.0]), state, jax.random.key(0))
    np.testing.assert_allclose(out["x"], [4.0, 5.0])
    assert state == ()
    assert metrics == {}


def test_the_mean_of_nobody_is_no_change():
    mean = aggregation.mean()
    out, _, _ = mean.apply(jnp.ones((3, 2)), jnp.zeros(3), (), jax.random.key(0))
    np.testing.assert_array_equal(out, 0.0)
