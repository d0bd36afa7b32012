"""FedProx and FedSAM, federated averaging around another local problem or on another oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_rounds import (
    LOSS,
    SOURCE,
    START,
    advance,
    cohorts,
    gradient,
    local_steps,
    perturbed_gradient,
)

import dflax as dx

RATE = 0.05


def rounds_by_hand(direction):
    x = START
    for cohort in cohorts():
        ends = [local_steps(x, functools.partial(direction, i, x), RATE)[0] for i in cohort]
        x = np.mean(ends, axis=0)
    return x


def test_fedprox_pulls_towards_the_servers_model():
    def run(pull):
        algorithm = dx.server.fedprox(LOSS, optax.sgd(RATE), pull=pull)
        return advance(algorithm, SOURCE)[0].server.params

    found = jax.jit(jax.vmap(run))(jnp.asarray([0.0, 2.0]))
    for row, pull in enumerate((0.0, 2.0)):
        expected = rounds_by_hand(lambda i, x, y: gradient(i, y) + pull * (y - x))  # noqa: B023
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_fedsam_and_its_sweep():
    def run(rho):
        algorithm = dx.server.fedsam(LOSS, optax.sgd(RATE), rho=rho)
        return advance(algorithm, SOURCE)[0].server.params

    found = jax.jit(jax.vmap(run))(jnp.asarray([0.0, 0.3]))
    for row, rho in enumerate((0.0, 0.3)):
        expected = rounds_by_hand(lambda i, x, y: perturbed_gradient(i, y, rho))  # noqa: B023
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dx.server.fedprox(LOSS, optax.sgd(0.1), pull=0.0), "pull must be a finite number"),
        (lambda: dx.server.fedprox(LOSS, optax.sgd(0.1), pull=11.0), "local rate times"),
        (lambda: dx.server.fedprox(LOSS, optax.sgd(0.1), 1.0), "server_optimizer must be"),
        (lambda: dx.server.fedsam(LOSS, optax.sgd(0.1), rho=-1.0), "rho must be a finite number"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
