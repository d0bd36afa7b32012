import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_rounds import (
    CLIENTS,
    COHORT,
    LOSS,
    SOURCE,
    START,
    A,
    B,
    advance,
    cohorts,
    federation,
    gradient,
    local_steps,
)
from tasks import assert_trees_close

import dflax as dx

RATE, PULL = 0.05, 0.5


@pytest.mark.some(2)
@pytest.mark.parametrize("server_rate", [None, 1.0])
@pytest.mark.parametrize("warm", [False, True])
def test_rounds_are_those_of_the_paper(server_rate, warm):
    z, x, y = START, np.tile(START, (CLIENTS, 1)), np.zeros((CLIENTS, 3))
    for cohort in cohorts():
        before = x + y / PULL
        for i in cohort:
            x[i], _ = local_steps(
                x[i] if warm else z,
                lambda v: gradient(i, v) + y[i] + PULL * (v - z),  # noqa: B023
                RATE,
            )
            y[i] = y[i] + PULL * (x[i] - z)
        change = (x + y / PULL - before)[cohort].mean(0)
        z = z + (COHORT / CLIENTS if server_rate is None else server_rate) * change
    algorithm = dx.server.fedadmm(
        LOSS, optax.sgd(RATE), CLIENTS, pull=PULL, server_rate=server_rate, warm=warm
    )
    state, metrics = jax.jit(functools.partial(advance, algorithm))(SOURCE)
    np.testing.assert_allclose(state.server.params, z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.clients.memory.params, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.clients.memory.dual, y, rtol=1e-4, atol=1e-5)
    assert metrics["primal_residual"].shape == (len(cohorts()),)
    if server_rate is None:
        np.testing.assert_allclose(z, (x + y / PULL).mean(0), rtol=1e-6)


def test_with_everyone_it_is_feddyn():
    source = federation(4, CLIENTS)
    admm, dyn = (
        jax.jit(functools.partial(advance, method(LOSS, optax.sgd(RATE), CLIENTS, pull=PULL)))(
            source
        )[0]
        for method in (dx.server.fedadmm, dx.server.feddyn)
    )
    assert_trees_close(admm.server.params, dyn.server.params, rtol=1e-5)
    assert_trees_close(admm.clients.memory.dual, PULL * dyn.clients.memory.dual, atol=1e-5)


def test_it_reaches_the_optimum_with_half_of_the_clients():
    optimum = np.linalg.solve(A.sum(0), np.einsum("nde,ne->d", A, B))
    with jax.enable_x64(True):
        algorithm = dx.server.fedadmm(LOSS, optax.sgd(0.1), CLIENTS, pull=1.0)
        state, _ = jax.jit(functools.partial(advance, algorithm, rounds=1500))(federation(5))
    np.testing.assert_allclose(state.server.params, optimum, atol=1e-9)


def test_rates_can_be_swept():
    def run(pull, server_rate):
        algorithm = dx.server.fedadmm(
            LOSS, optax.sgd(RATE), CLIENTS, pull=pull, server_rate=server_rate
        )
        return advance(algorithm, SOURCE)[0].server.params

    points = jnp.asarray([0.2, 0.5]), jnp.asarray([1.0, 0.7])
    found = jax.jit(jax.vmap(run))(*points)
    np.testing.assert_allclose(found[1], jax.jit(run)(0.5, 0.7), rtol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pull": 0.0}, "pull must be a finite number in"),
        ({"pull": 10.0}, "local rate times"),
        ({"server_rate": 0.0}, "server_rate must be a finite number in"),
        ({"warm": 1}, "warm must be True or False"),
        ({"clients": 0}, "clients must be an integer >= 1"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    given = {"clients": CLIENTS} | options
    with pytest.raises((TypeError, ValueError), match=message):
        dx.server.fedadmm(LOSS, optax.sgd(0.1), **given)
