import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import half_square, quadratics

import dflax as dx
from dflax.server import fedadagrad, fedadam, fedyogi

KEY = jax.random.key(0)
TASK = quadratics()
FEDERATION = TASK.federation(2)
DESCENT = optax.sgd(0.1)


def end(algorithm, rounds=4):
    state, _ = dx.rollout(algorithm, algorithm.init(KEY, jnp.ones(3)), FEDERATION, KEY, rounds)
    return state.server


RULES = {
    fedadam: lambda v, d: 0.99 * v + 0.01 * d**2,
    fedyogi: lambda v, d: v - 0.01 * d**2 * np.sign(v - d**2),
    fedadagrad: lambda v, d: v + d**2,
}


@pytest.mark.parametrize("factory", list(RULES))
def test_it_is_the_papers_update_with_its_defaults(factory):
    """Algorithm 2 in float64: v from tau^2, no correction of the bias."""
    server = end(factory(half_square, DESCENT, 0.05))
    x, m, v = np.ones(3), np.zeros(3), np.full(3, 1e-6)
    beta = 0.0 if factory is fedadagrad else 0.9
    for _ in range(4):
        d = (1 - 0.9**2) * (TASK.centers.astype(np.float64).mean(0) - x)
        m = beta * m + (1 - beta) * d
        v = RULES[factory](v, d)
        x = x + 0.05 * m / (np.sqrt(v) + 1e-3)
    np.testing.assert_allclose(server.params, x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(server.memory.square, v, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(server.memory.mean, -m, rtol=1e-4, atol=1e-7)


def test_it_is_not_optaxs_adam_which_corrects_the_bias():
    ours = end(fedadam(half_square, DESCENT, 0.05)).params
    plain = dx.server.fedavg(half_square, DESCENT, optax.adam(0.05, b2=0.99, eps=1e-3))
    assert np.abs(ours - end(plain).params).max() > 1e-3


def test_all_its_numbers_can_be_swept():
    def swept(rate, b1, b2, tau):
        return end(fedyogi(half_square, DESCENT, rate, b1=b1, b2=b2, tau=tau), 2).params

    points = jnp.asarray([[0.05, 0.9, 0.99, 1e-3], [0.1, 0.0, 0.9, 1e-1]])
    found, alone = jax.jit(jax.vmap(swept))(*points.T), jax.jit(swept)
    for point, params in zip(points, found, strict=True):
        np.testing.assert_allclose(params, alone(*point), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (fedadam, {"server_rate": 0.0}, "server_rate must be a finite number"),
        (fedadam, {"server_rate": 0.1, "b1": 1.0}, "b1 must be a finite number"),
        (fedyogi, {"server_rate": 0.1, "b2": -0.1}, "b2 must be a finite number"),
        (fedadagrad, {"server_rate": 0.1, "tau": 0.0}, "tau must be a finite number"),
    ],
)
def test_bad_arguments_are_refused(factory, options, message):
    with pytest.raises(ValueError, match=message):
        factory(half_square, DESCENT, **options)
