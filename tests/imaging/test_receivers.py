"""Imaging over receivers: one client is the central solver, several find the same minimiser."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from imaging_tasks import KEY, SCENES, flat, matrix, measured, operator, shrunk
from tasks import assert_trees_close

import dflax as dx
from dflax import imaging

KAPPA, ALPHA, R = 60.0, 0.05, 4


@functools.cache
def kept(among):
    d = measured()
    return imaging.received(operator(), d.measurements, d.radius, among=among)


@functools.cache
def program(rounds, clients, least_squares):
    @jax.jit
    def run(start, kept, source, penalty, strength):
        algorithm = imaging.pnp_consensus(
            operator(),
            imaging.sparse(),
            clients,
            penalty=penalty,
            strength=strength,
            least_squares=least_squares,
        )
        state = algorithm.init(KEY, start, kept)
        return dx.rollout(algorithm, state, source, KEY, rounds)

    return run


def ran(rounds, clients, least_squares=False, penalty=KAPPA, strength=ALPHA):
    start = imaging.first_scenes(operator(), measured().measurements)
    run = program(rounds, clients, least_squares)
    own = kept(1 if clients == 1 else None)
    return run(start, own, imaging.receiving(own), penalty, strength)


@pytest.mark.slow
def test_one_client_with_everything_is_the_central_solver():
    state, metrics = ran(8, 1)
    algorithm = imaging.pnp_admm(
        operator(), imaging.sparse(), penalty=KAPPA, strength=ALPHA, tolerance=0.0
    )
    d = measured()

    @jax.jit
    def central(y, radius, source):
        return dx.rollout(algorithm, algorithm.init(KEY, y, radius), source, KEY, 8)

    alone, _ = central(d.measurements, d.radius, dx.Population(SCENES))
    np.testing.assert_allclose(imaging.shared_scenes(state), alone.clients.v1, atol=2e-5)
    own = state.clients.memory
    np.testing.assert_allclose(own.memory.v2[0], alone.clients.v2, atol=1e-4)
    np.testing.assert_allclose(
        imaging.receivers.whole(own.dual)[0], -KAPPA * alone.clients.d1, atol=2e-3
    )
    assert metrics["misfit"].shape == (8,)


@pytest.mark.parametrize("clients", [1, R])
def test_least_squares_end_at_one_minimiser_however_they_are_dealt(clients):
    weight = 3.0
    penalty = 60.0 / clients
    state, _ = ran(1500, clients, True, penalty, weight / penalty)
    found = flat(imaging.shared_scenes(state))
    A, y = matrix(), flat(measured().measurements).astype(complex)
    rate = 1 / np.linalg.norm(A, 2) ** 2

    def objective(x):
        return weight * np.abs(x).sum(1) + np.square(np.abs(y - x @ A.T)).sum(1) / 2

    x = momentum = np.zeros_like(found, complex)
    t = 1.0
    # FISTA, until its steps are those of rounding.
    for _ in range(3000):
        after = shrunk(momentum - rate * (momentum @ A.T - y) @ A.conj(), rate * weight)
        later = (1 + np.sqrt(1 + 4 * t * t)) / 2
        x, momentum, t = after, after + (t - 1) / later * (after - x), later
    np.testing.assert_allclose(objective(found), objective(x), rtol=1e-4)
    np.testing.assert_allclose(found, x, rtol=0, atol=5e-3 * np.abs(x).max())


@pytest.mark.slow
def test_receivers_on_eight_devices_and_on_one():
    d = measured()
    algorithm = imaging.pnp_consensus(operator(), imaging.sparse(), R, penalty=KAPPA)
    start = imaging.first_scenes(operator(), d.measurements)
    options = {"rounds": 3, "key": KEY}
    source = imaging.receiving(kept(None))
    alone, _ = dx.run(algorithm, algorithm.init(KEY, start, kept(None)), source, **options)
    mesh = dx.client_mesh(jax.devices()[:R])
    dealt, _ = dx.run(
        algorithm, algorithm.init(KEY, start, kept(None)), source, **options, mesh=mesh
    )
    assert_trees_close(dealt.server.params, alone.server.params, rtol=1e-3, atol=1e-5)
    assert_trees_close(dealt.clients, alone.clients, rtol=1e-3, atol=1e-3)


def test_a_receivers_share_of_the_noise():
    radii = np.asarray(kept(None).radius)
    assert radii.shape == (R, SCENES)
    np.testing.assert_allclose(np.sqrt((radii**2).sum(0)), measured().radius, rtol=1e-5)


def test_what_does_not_fit_is_refused():
    d = measured()
    with pytest.raises(ValueError, match="among must be 1 or 4"):
        imaging.received(operator(), d.measurements, 1.0, among=2)
    with pytest.raises(ValueError, match="measurements must be"):
        imaging.received(operator(), d.measurements[:0], 1.0)
    with pytest.raises(ValueError, match="penalty must be"):
        imaging.pnp_consensus(operator(), imaging.sparse(), R, penalty=0.0)
    algorithm = imaging.pnp_consensus(operator(), imaging.sparse(), 2)
    start = imaging.first_scenes(operator(), d.measurements)
    with pytest.raises(ValueError, match="kept"):
        algorithm.init(KEY, start, kept(None))
    with pytest.raises(TypeError, match="state must be one of pnp_consensus"):
        imaging.shared_scenes(None)
    right = imaging.pnp_consensus(operator(), imaging.sparse(), R)
    state = right.init(KEY, start, kept(None))
    with pytest.raises(TypeError, match="receivers' measurements"):
        right.step(state, dx.Population(R).draw(KEY, 0))
    assert jnp.isfinite(imaging.shared_scenes(state)).all()
