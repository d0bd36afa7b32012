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
    A,
    B,
    advance,
    cohorts,
    federation,
    gradient,
    gradients,
    local_steps,
)

import dflax as dx

RATE, GAMMA = 0.05, 0.15
METHODS = {
    "fedcm": (dx.server.fedcm, False, False),
    "scaffold_m": (functools.partial(dx.server.scaffold_m, clients=CLIENTS), True, False),
    "fedavg_m_vr": (dx.server.fedavg_m_vr, False, True),
    "scaffold_m_vr": (functools.partial(dx.server.scaffold_m_vr, clients=CLIENTS), True, True),
}


def rounds_by_hand(beta, control, reduced):
    """The sheet of the method in float64: model, g and the c_i after the rounds."""
    x = previous = START
    c_i = gradients(START) if control else np.zeros((CLIENTS, 3))
    g = gradients(START).mean(0)
    for cohort in cohorts():
        c, directions, seen = c_i.mean(0), [], {}
        for i in cohort:
            met = seen.setdefault(i, [])

            def direction(y, i=i, c=c, c_i=c_i, met=met, g=g, previous=previous):
                met.append(gradient(i, y))
                if reduced:
                    return met[-1] - beta * (c_i[i] - c) + (1 - beta) * (g - gradient(i, previous))
                return beta * (met[-1] - c_i[i] + c) + (1 - beta) * g

            directions.append(local_steps(x, direction, RATE)[1])
        g = np.mean(directions, axis=0)
        previous, x = x, x - GAMMA * g
        if control:
            c_i = c_i.copy()
            for i, met in seen.items():
                c_i[i] = np.mean(met, axis=0)
    return x, g, c_i


@functools.cache
def swept(name):
    """beta = 1 and beta = 0.3 as one program, under partial participation."""
    method, _, _ = METHODS[name]

    def run(beta):
        algorithm = method(LOSS, optax.sgd(RATE), beta=beta, server_rate=GAMMA)
        return advance(algorithm, SOURCE, given=(jnp.asarray(gradients(START), jnp.float32),))

    return jax.jit(jax.vmap(run))(jnp.asarray([1.0, 0.3]))


@pytest.mark.some(2)
@pytest.mark.parametrize("name", METHODS)
def test_rounds_are_those_of_the_paper(name):
    _, control, reduced = METHODS[name]
    state, metrics = swept(name)
    for row, beta in enumerate((1.0, 0.3)):
        x, g, c_i = rounds_by_hand(beta, control, reduced)
        np.testing.assert_allclose(state.server.params[row], x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.server.memory.momentum[row], g, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(metrics["direction_norm"][row, -1], np.linalg.norm(g), rtol=1e-3)
        if control:
            np.testing.assert_allclose(state.clients.memory[row], c_i, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(
                state.server.memory.control[row], c_i.mean(0), rtol=1e-4, atol=1e-5
            )


@pytest.mark.some(1)
@pytest.mark.parametrize("name", METHODS)
def test_without_momentum_they_are_fedavg_and_scaffold(name):
    """Server rate gamma / (eta K)."""
    server_rate = GAMMA / (RATE * STEPS)
    if METHODS[name][1]:
        base = dx.server.scaffold(LOSS, optax.sgd(RATE), CLIENTS, server_rate=GAMMA)
        given = (jnp.asarray(gradients(START), jnp.float32),)
    else:
        base, given = dx.server.fedavg(LOSS, optax.sgd(RATE), optax.sgd(server_rate)), ()
    state, _ = jax.jit(functools.partial(advance, base))(SOURCE, given=given)
    np.testing.assert_allclose(
        swept(name)[0].server.params[0], state.server.params, rtol=1e-4, atol=1e-5
    )


def test_averaged_models_are_a_server_step_of_eta_k():
    """Without gamma: x - x+ = eta K g, and the drift is that of the local models."""
    algorithm = dx.server.fedcm(LOSS, optax.sgd(RATE), beta=0.3)
    state, metrics = jax.jit(functools.partial(advance, algorithm, rounds=1))(SOURCE)
    went = (START - state.server.params) / (RATE * STEPS)
    np.testing.assert_allclose(went, state.server.memory.momentum, rtol=1e-4, atol=1e-5)
    ends = [local_steps(START, lambda y, i=i: 0.3 * gradient(i, y), RATE)[0] for i in cohorts()[0]]
    np.testing.assert_allclose(
        metrics["drift"][0], np.mean([np.sum((end - START) ** 2) for end in ends]), rtol=1e-4
    )


def test_the_hand_example():
    algorithm = dx.server.fedcm(LOSS, optax.sgd(0.1), beta=0.5, server_rate=0.2)
    source = federation(2, 2, np.array([[[1.0]], [[2.0]]]), np.array([[1.0], [-1.0]]))
    state, _ = advance(algorithm, source, 1, np.zeros(1))
    np.testing.assert_allclose(state.server.memory.momentum, 0.23125, rtol=1e-5)
    np.testing.assert_allclose(state.server.params, -0.04625, rtol=1e-5)


def test_reduced_momentum_tracks_the_gradient():
    """K = 1, no noise: g+ - grad f(x) = (1 - beta) (g - grad f(x_prev)); one client: STORM."""
    beta, wrong = 0.3, np.array([0.5, 0.2, -0.1])
    given = jnp.asarray(gradients(START) + wrong, jnp.float32)
    algorithm = dx.server.fedavg_m_vr(LOSS, optax.sgd(RATE), beta=beta, server_rate=GAMMA)
    source, step = federation(1, CLIENTS), jax.jit(algorithm.step)
    state = algorithm.init(KEY, jnp.asarray(START, jnp.float32), given)
    for t in range(3):
        x = np.asarray(state.server.params, np.float64)
        state, _ = step(state, source.draw(KEY, t))
        off = state.server.memory.momentum - gradients(x).mean(0)
        np.testing.assert_allclose(off, (1 - beta) ** (t + 1) * wrong, atol=1e-5)


@functools.cache
def instance():
    """The sheet's six heterogeneous quadratics: N = 6, d = 3, L = 4.78."""
    generator = np.random.default_rng(3)
    M = generator.normal(size=(6, 3, 3))
    hessians = M @ M.swapaxes(1, 2) / 3 + 0.5 * np.eye(3)
    optima = 2 * generator.normal(size=(6, 3))
    optimum = np.linalg.solve(hessians.sum(0), np.einsum("nde,ne->d", hessians, optima))
    return hessians, optima, optimum


def errors(method, points, cohort, rounds):
    """|x - x*| at the end, in float64, for each (eta, beta)."""
    hessians, optima, optimum = instance()
    with jax.enable_x64(True):
        source = federation(5, cohort, hessians, optima)
        given = jnp.asarray(-np.einsum("nde,ne->nd", hessians, optima))

        def end(point):
            algorithm = method(LOSS, optax.sgd(point[0]), beta=point[1], server_rate=0.1)
            state, _ = advance(algorithm, source, rounds, np.zeros(3), (given,))
            return jnp.linalg.norm(state.server.params - optimum)

        return np.asarray(jax.jit(jax.vmap(end))(jnp.asarray(points)))


def test_momentum_stops_where_fedavg_with_a_smaller_rate_does():
    found = errors(dx.server.fedcm, [(0.02, 1.0), (0.02, 0.5), (0.01, 1.0)], 6, 2000)
    np.testing.assert_allclose(found[0], 0.1536477, atol=5e-8)
    np.testing.assert_allclose(found[1:], 0.0785905879, atol=5e-11)


def test_reduction_leaves_fedavgs_bias_whatever_beta_is():
    found = errors(dx.server.fedavg_m_vr, [(0.02, 1.0), (0.02, 0.5), (0.02, 0.1)], 6, 2000)
    np.testing.assert_allclose(found, 0.1536477, atol=5e-8)


@pytest.mark.parametrize("name", ["scaffold_m", "scaffold_m_vr"])
def test_control_variates_reach_the_optimum_with_two_of_six(name):
    found = errors(METHODS[name][0], [(0.02, 1.0), (0.02, 0.3)], 2, 4000)
    assert found.max() < 1e-10


@pytest.mark.parametrize("name", ["scaffold_m", "scaffold_m_vr"])
def test_the_optimum_is_a_fixed_point(name):
    optimum = np.linalg.solve(A.sum(0), np.einsum("nde,ne->d", A, B))
    given = jnp.asarray(gradients(optimum), jnp.float32)
    algorithm = METHODS[name][0](LOSS, optax.sgd(0.3), beta=0.4, server_rate=0.7)
    state, _ = jax.jit(functools.partial(advance, algorithm, rounds=4, start=optimum))(
        SOURCE, given=(given,)
    )
    np.testing.assert_allclose(state.server.params, optimum, atol=2e-5)
    np.testing.assert_allclose(state.clients.memory, given, atol=2e-5)
    np.testing.assert_allclose(state.server.memory.momentum, 0.0, atol=2e-5)


def test_the_mean_control_follows_by_increments_without_drifting_away():
    algorithm = dx.server.scaffold(LOSS, optax.sgd(RATE), CLIENTS)
    state, _ = jax.jit(functools.partial(advance, algorithm, rounds=2000))(SOURCE)
    np.testing.assert_allclose(state.server.memory.control, state.clients.memory.mean(0), atol=1e-5)


def test_mofedsam_is_fedcm_on_perturbed_gradients():
    plain = dx.server.fedcm(dx.local.sam(LOSS, 0.2), optax.sgd(RATE), beta=0.3)
    named = dx.server.mofedsam(LOSS, optax.sgd(RATE), radius=0.2, beta=0.3)
    first, second = (
        jax.jit(functools.partial(advance, algorithm, rounds=2))(SOURCE)[0].server.params
        for algorithm in (plain, named)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: dx.server.fedcm(LOSS, optax.sgd(0.1), beta=0.0),
            "beta must be a finite number in",
        ),
        (
            lambda: dx.server.fedcm(LOSS, optax.sgd(0.1), beta=1.1),
            "beta must be a finite number in",
        ),
        (lambda: dx.server.fedcm(LOSS, 0.1), "optimizer must be an optax optimiser"),
        (
            lambda: dx.server.fedcm(LOSS, optax.sgd(0.1), server_rate=-1.0),
            "server_rate must be a finite number",
        ),
        (
            lambda: dx.server.mofedsam(LOSS, optax.sgd(0.1), radius=-1.0),
            "radius must be a finite number",
        ),
        (lambda: dx.server.scaffold_m(LOSS, optax.sgd(0.1), 0), "clients must be an integer >= 1"),
        (
            lambda: dx.server.fedavg_m_vr(LOSS, optax.sgd(0.1)).init(KEY, jnp.zeros(3)),
            "gradients must be given to init",
        ),
        (
            lambda: dx.server.scaffold_m_vr(LOSS, optax.sgd(0.1), 6).init(
                KEY, jnp.zeros(3), jnp.zeros((5, 3))
            ),
            "gradients must have a leading axis of length 6, got 5",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
