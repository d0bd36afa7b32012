import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_rounds import CLIENTS, LOSS, SOURCE, START, STEPS, advance, cohorts, gradient

import dflax as dx

RATE, PULL = 0.05, 0.5


def unit(v, rho):
    return rho * v / (np.linalg.norm(v) + 1e-7)


def rounds_by_hand(rho):
    x, s = START, np.zeros(3)
    h, mu = np.zeros((CLIENTS, 3)), np.zeros((CLIENTS, 3))
    for cohort in cohorts():
        ends = []
        for i in cohort:
            y = x
            for _ in range(STEPS):
                e = unit(gradient(i, y) - mu[i] - s, rho)
                mu[i] = mu[i] + e - s
                y = y - RATE * (gradient(i, y + e) + PULL * (y - x) + PULL * h[i])
            h[i] = h[i] + y - x
            ends.append(y)
        x, s = np.mean(ends, axis=0) + h.mean(0), unit(mu[cohort].mean(0), rho)
    return x, s, h, mu


def test_rounds_are_those_of_the_paper_and_radius_zero_is_feddyn():
    def run(rho):
        algorithm = dx.server.fedsmoo(LOSS, optax.sgd(RATE), CLIENTS, pull=PULL, radius=rho)
        return advance(algorithm, SOURCE)[0]

    state = jax.jit(jax.vmap(run))(jnp.asarray([0.3, 0.0]))
    x, s, h, mu = rounds_by_hand(0.3)
    np.testing.assert_allclose(state.server.params[0], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.server.memory.shared[0], s, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state.clients.memory.dual[0], h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.clients.memory.oracle[0], mu, rtol=1e-3, atol=1e-4)
    algorithm = dx.server.feddyn(LOSS, optax.sgd(RATE), CLIENTS, pull=PULL)
    plain, _ = jax.jit(functools.partial(advance, algorithm))(SOURCE)
    np.testing.assert_allclose(state.server.params[1], plain.server.params, rtol=1e-5)
    np.testing.assert_allclose(state.clients.memory.oracle[1], 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -0.1}, "radius must be a finite number in"),
        ({"pull": 10.0}, "local rate times"),
        ({"clients": 0}, "clients must be an integer >= 1"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    given = {"clients": CLIENTS} | options
    with pytest.raises(ValueError, match=message):
        dx.server.fedsmoo(LOSS, optax.sgd(0.1), **given)
