import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_rounds import (
    CLIENTS,
    KEY,
    LOSS,
    SOURCE,
    START,
    STEPS,
    advance,
    cohorts,
    local_steps,
    perturbed_gradient,
)

import dflax as dx

RATE = 0.05


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_rounds_are_those_of_the_paper(rho):
    """With the paper's displacement rule for the control variates."""
    x, c, c_i = START, np.zeros(3), np.zeros((CLIENTS, 3))
    for cohort in cohorts():
        changes, before = [], c_i.copy()
        for i in cohort:
            shift = c - before[i]
            end, _ = local_steps(x, lambda y: perturbed_gradient(i, y, rho) + shift, RATE)  # noqa: B023
            changes.append(end - x)
            c_i[i] = before[i] - c - (end - x) / (STEPS * RATE)
        x, c = x + np.mean(changes, axis=0), c + (c_i - before).sum(0) / CLIENTS
    if rho:
        algorithm = dx.server.fedgamma(LOSS, optax.sgd(RATE), CLIENTS, radius=rho)
    else:
        algorithm = dx.server.scaffold(LOSS, optax.sgd(RATE), CLIENTS)
    state, metrics = jax.jit(functools.partial(advance, algorithm))(SOURCE)
    np.testing.assert_allclose(state.server.params, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.server.memory.control, c, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state.clients.memory, c_i, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(metrics["clients_reporting"], 3.0)


def test_who_does_no_step_keeps_its_control_variate():
    algorithm = dx.server.scaffold(LOSS, optax.sgd(RATE), CLIENTS, server_rate=0.1)
    source = SOURCE
    state, _ = jax.jit(functools.partial(advance, algorithm))(source)
    drawn = source.draw(KEY, 7)
    idle = drawn._replace(
        assignments=drawn.assignments._replace(local_steps=jnp.zeros(3, jnp.int32))
    )
    after, _ = jax.jit(algorithm.step)(state, idle)
    np.testing.assert_array_equal(after.clients.memory, state.clients.memory)
    np.testing.assert_array_equal(after.server.params, state.server.params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dx.server.scaffold(LOSS, optax.sgd(0.1), 0), "clients must be an integer >= 1"),
        (lambda: dx.server.scaffold(LOSS, 0.1, 6), "optimizer must be an optax optimiser"),
        (lambda: dx.server.scaffold(1, optax.sgd(0.1), 6), "loss must be a function"),
        (
            lambda: dx.server.scaffold(LOSS, optax.sgd(0.1), 6, server_rate=0.0),
            "server_rate must be a finite number",
        ),
        (
            lambda: dx.server.fedgamma(LOSS, optax.sgd(0.1), 6, radius=-0.1),
            "radius must be a finite",
        ),
        (
            lambda: dx.server.scaffold(LOSS, optax.sgd(0.1), 5).step(
                dx.server.scaffold(LOSS, optax.sgd(0.1), 5).init(KEY, jnp.zeros(3)),
                SOURCE.draw(KEY, 0),
            ),
            "clients' memory must have a leading axis of length 6, got 5",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
