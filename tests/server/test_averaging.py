"""FedProx and FedSAM, federated averaging around another local problem or on another oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_rounds import (
    KEY,
    LOSS,
    SOURCE,
    START,
    advance,
    cohorts,
    gradient,
    local_steps,
    perturbed_gradient,
)
from tasks import assert_trees_close, half_square, quadratics

import dflax as dx

RATE = 0.05
SGD = optax.sgd(0.1)


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
        algorithm = dx.server.fedsam(LOSS, optax.sgd(RATE), radius=rho)
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
        (
            lambda: dx.server.fedsam(LOSS, optax.sgd(0.1), radius=-1.0),
            "radius must be a finite number",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_clients_that_keep_their_optimizer_go_on_where_they_were():
    """One client: three rounds of two steps of Adam are one round of six; fresh ones are not."""
    task = quadratics(1)

    def end(steps, rounds, keep):
        algorithm = dx.server.fedavg(
            half_square, optax.adam(0.1), keep_optimizer=keep, clients=1 if keep else None
        )
        state = algorithm.init(KEY, jnp.ones(3))
        source = task.federation(local_steps=steps)
        run = jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))
        return run(state, source, KEY)[0]

    once, kept, fresh = end(6, 1, True), end(2, 3, True), end(2, 3, False)
    np.testing.assert_allclose(kept.server.params, once.server.params, rtol=1e-5)
    assert_trees_close(kept.clients.memory, once.clients.memory, rtol=1e-5)
    assert not np.allclose(fresh.server.params, once.server.params, rtol=1e-3)
    assert not jax.tree.leaves(fresh.clients)


def test_who_does_not_report_keeps_its_optimizer():
    algorithm = dx.server.fedprox(
        half_square, optax.sgd(0.1, momentum=0.9), keep_optimizer=True, clients=6
    )
    drawn = quadratics(6).federation(participation=dx.participation.uniform(2)).draw(KEY, 0)
    start = algorithm.init(KEY, jnp.ones(3))
    state, _ = jax.jit(algorithm.step)(start, drawn)
    (before,), (after,) = map(jax.tree.leaves, (start.clients.memory, state.clients.memory))
    moved = np.flatnonzero((before != after).any(1))
    np.testing.assert_array_equal(moved, np.sort(drawn.cohort))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dx.server.fedavg(LOSS, SGD, keep_optimizer=True), "clients must be an integer"),
        (lambda: dx.server.fedavg(LOSS, SGD, keep_optimizer=1), "keep_optimizer must be True or"),
        (lambda: dx.server.fedprox(LOSS, 3), "optimizer must be an optax optimiser"),
        (lambda: dx.server.fedprox(LOSS, SGD, 3), "server_optimizer must be an optax optimiser"),
        (lambda: dx.server.feddyn(LOSS, SGD, 6, average=np.ones(2)), "average must be one of"),
        (lambda: dx.server.fedspeed(LOSS, SGD, 6, alpha=2.0), "alpha must be a finite number"),
        (lambda: dx.server.fedspeed(LOSS, SGD, 6, normalize=1), "normalize must be True or False"),
        (lambda: dx.server.fedadmm(LOSS, SGD, 6, warm="no"), "warm must be True or False"),
        (lambda: dx.server.mimelite(LOSS, 0.1), "optimizer must be an optax optimiser"),
        (lambda: dx.server.fedcm(LOSS, SGD, beta=None), "beta must be a real number"),
        (lambda: dx.server.fedcm(LOSS, SGD, beta=True), "beta must be a real number"),
        (lambda: dx.server.mofedsam(LOSS, SGD, beta=None), "beta must be a real number"),
        (lambda: dx.server.scaffold_m(LOSS, SGD, 6, beta=1j), "beta must be a real number"),
        (lambda: dx.server.fedavg_m_vr(LOSS, SGD, beta=None), "beta must be a real number"),
        (lambda: dx.server.scaffold_m_vr(LOSS, SGD, 6, beta=None), "beta must be a real number"),
        (lambda: dx.server.fedcm(LOSS, SGD, beta=np.ones(0)), "beta must be a single real number"),
        (lambda: dx.server.fixed_adam(b1=None), "b1 must be a real number"),
        (lambda: dx.server.anchors.constant(True), "probability must be a real number"),
        (lambda: dx.channel.lossy(True), "probability must be a real number"),
        (lambda: dx.channel.top_k(None), "share must be a real number"),
        (lambda: dx.channel.largest(jnp.ones(3), np.nan), "count must be an integer"),
        (lambda: dx.channel.largest(jnp.ones((3, 1)), 1), "values must have one axis"),
        (lambda: dx.channel.compression(1, len), "compress must be a function"),
        (lambda: dx.channel.compression(lambda *given: given, 1), "bits must be a function"),
        (lambda: dx.channel.compression(lambda *given: given, len, 1), "init must be a function"),
        (lambda: dx.channel.compression(len, len), "compress must be a function of 3 arguments"),
        (lambda: dx.server.fal(LOSS, SGD, 3), "attack must be a function"),
        (lambda: dx.server.local_change(LOSS, SGD, 3), "problem must be a function"),
    ],
)
def test_arguments_are_refused_by_their_own_names(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()
