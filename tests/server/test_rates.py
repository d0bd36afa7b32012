"""Rates of the server that follow the round, alone and with a local rate that does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import half_square, quadratics

import dflax as dx
from dflax import server

KEY = jax.random.key(0)
N = 6
TASK = quadratics(N)
ONES = jnp.ones(3)
SGD = optax.sgd(0.1)


def attack(params, batch, key):
    return batch


# A method, the name of its rate, and what else it needs.
RATED = {
    "scaffold": ("server_rate", (half_square, SGD, N), {}),
    "fedgamma": ("server_rate", (half_square, SGD, N), {}),
    "fedcm": ("server_rate", (half_square, SGD), {}),
    "mofedsam": ("server_rate", (half_square, SGD), {}),
    "scaffold_m": ("server_rate", (half_square, SGD, N), {}),
    "fedavg_m_vr": ("server_rate", (half_square, SGD), {}),
    "scaffold_m_vr": ("server_rate", (half_square, SGD, N), {}),
    "fedadmm": ("server_rate", (half_square, SGD, N), {}),
    "mimelite": ("server_rate", (half_square, SGD), {}),
    "fal": ("server_rate", (half_square, SGD, attack), {}),
    "fedamd": ("server_rate", (half_square, SGD, server.anchors.periodic(2)), {}),
    "fedpage": ("server_rate", (half_square, 0.1, 0.5), {}),
    "fedadam": ("server_rate", (half_square, SGD), {}),
    "fedyogi": ("server_rate", (half_square, SGD), {}),
    "fedadagrad": ("server_rate", (half_square, SGD), {}),
}


@pytest.mark.parametrize("name", RATED)
@pytest.mark.parametrize("wrong", [-1.0, np.nan, 1j, "0.1", np.ones(2), lambda t: -1.0, {}])
def test_a_wrong_rate_is_refused_by_name(name, wrong):
    rate, given, options = RATED[name]
    with pytest.raises((TypeError, ValueError), match=f"^{rate} must be"):
        getattr(server, name)(*given, **{rate: wrong}, **options)


@pytest.mark.some(2)
@pytest.mark.parametrize("name", ["scaffold", "fedcm", "fedadmm", "mimelite", "fal", "fedadam"])
def test_a_function_of_the_round_gives_each_round_its_rate(name):
    """Round 3 of a decaying rate is that of the number that it is in round 3, and no other."""
    rate, given, options = RATED[name]
    drawn = TASK.federation(local_steps=2).draw(KEY, 3)

    @jax.jit
    def models(state, drawn):
        def moved(value):
            algorithm = getattr(server, name)(*given, **{rate: value}, **options)
            return algorithm.step(state, drawn)[0].server.params

        return moved(lambda t: 0.4 * 0.5**t), moved(0.4 * 0.5**3), moved(0.4)

    start = getattr(server, name)(*given, **{rate: 1.0}, **options).init(KEY, ONES)
    decayed, same, other = models(start, drawn)
    np.testing.assert_allclose(decayed, same, rtol=1e-6)
    assert not np.allclose(decayed, other, rtol=1e-3)


def test_gamma_follows_a_local_rate_that_decays():
    """With gamma = eta(t) K the server's step is the mean of the local models, in every round."""
    steps = 3

    def eta(t):
        return 0.2 * 0.5**t

    optimizer = lambda t: optax.sgd(eta(t))  # noqa: E731
    source = TASK.federation(local_steps=steps)

    @jax.jit
    def ends():
        found = []
        for gamma in (None, lambda t: eta(t) * steps):
            algorithm = server.scaffold(half_square, optimizer, N, server_rate=gamma)
            state = algorithm.init(KEY, ONES)
            found.append(dx.rollout(algorithm, state, source, KEY, 4)[0].server.params)
        return found

    averaged, stepped = ends()
    np.testing.assert_allclose(stepped, averaged, rtol=1e-5, atol=1e-6)
