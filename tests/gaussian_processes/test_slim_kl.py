"""SLIM-KL against a loop in float64 NumPy, against L-BFGS-B on all data, on graphs and on devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_series import (
    COMPONENTS,
    KEY,
    ROWS,
    Y,
    as_numpy,
    joint,
    of_agent,
    reference,
    task,
)
from scipy.optimize import minimize
from tasks import assert_trees_close, assert_trees_equal

import dflax as dx
from dflax import gaussian_processes as gp

N = len(ROWS)
START = np.full(COMPONENTS, np.mean(Y**2) / COMPONENTS)


@functools.cache
def given():
    """The kernel and the federation, in float64."""
    with jax.enable_x64(True):
        kernel, _, observed = task()
        return kernel, gp.observing(observed)


@functools.cache
def program(rounds, **options):
    kernel, _ = given()

    @jax.jit
    def run(penalty, resolution, source):
        algorithm = gp.slim_kl(kernel, N, penalty, resolution=resolution, **options)
        state = algorithm.init(KEY, jnp.asarray(START))
        return dx.rollout(algorithm, state, source, KEY, rounds)

    return run


def ran(rounds, penalty=1.0, resolution=0.0, **options):
    with jax.enable_x64(True):
        found = program(rounds, **options)(penalty, resolution, given()[1])
        return as_numpy(found)


def root(p, b, rho):
    """The positive root of rho t^3 + b t^2 = p by the eigenvalues of NumPy's companion matrix."""
    roots = np.roots([rho, b, 0.0, -p])
    return roots[np.abs(roots.imag) < 1e-8].real.max()


def balanced(rho, primal, dual):
    return rho * 2 if primal > 10 * dual else rho / 2 if dual > 10 * primal else rho


@pytest.mark.slow
def test_rounds_are_those_of_numpy():
    theta, rho = START, 1.0
    zeta, duals = np.tile(START, (N, 1)), np.zeros((N, COMPONENTS))
    for _ in range(4):
        before = theta
        for agent, rows in enumerate(ROWS):
            for _ in range(2):
                z = np.maximum(zeta[agent], 1e-12)
                _, g, q = reference(z, rows)
                b = g + duals[agent] - rho * theta
                zeta[agent] = [root(*three, rho) for three in zip(z * z * q, b, strict=True)]
        theta = (zeta + duals / rho).mean(0)
        duals = duals + rho * (zeta - theta)
        dual = np.sqrt(N) * rho * np.linalg.norm(theta - before)
        rho = balanced(rho, np.linalg.norm(zeta - theta), dual)
    state, metrics = ran(4, solver=gp.mm(2))
    np.testing.assert_allclose(state.server.params, theta, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(state.clients.memory.params, zeta, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(state.clients.memory.dual, duals, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(state.server.memory.penalty, rho)
    mean = np.mean([reference(own, rows)[0] for own, rows in zip(zeta, ROWS, strict=True)])
    np.testing.assert_allclose(metrics["local_objective"][-1], mean, rtol=1e-8)


def test_duals_add_up_to_zero_and_the_weights_are_the_mean():
    state, _ = ran(5, 2.0, adapt=None)
    assert np.abs(state.clients.memory.dual.sum(0)).max() < 1e-13
    np.testing.assert_allclose(state.server.params, state.clients.memory.params.mean(0), atol=1e-15)
    step = 2.0**-7
    state, metrics = ran(5, 2.0, step, adapt=None)
    assert 0 < np.abs(state.clients.memory.dual.sum(0)).max() <= N * 2.0 * step
    for sent in (state.server.params, state.clients.memory.params):
        np.testing.assert_array_equal(sent / step, np.round(sent / step))
    assert (metrics["bytes_uncompressed"] == N * COMPONENTS * 8).all()
    assert (metrics["bytes_sent"] < 0.2 * metrics["bytes_uncompressed"]).all()


@functools.cache
def centralised():
    bounds = [(0, None)] * COMPONENTS
    runs = [
        minimize(joint, start, jac=True, method="L-BFGS-B", bounds=bounds).fun
        for start in (START, np.full(COMPONENTS, 0.1))
    ]
    return min(runs)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("penalty", "resolution", "solver"),
    [(0.1, 0.0, gp.mm()), (0.1, 1e-3, gp.mm()), (1e-10, 0.0, gp.mm()), (0.1, 0.0, gp.dsca(4))],
    ids=["exact", "quantised", "tiny penalty", "dsca"],
)
def test_it_ends_near_the_optimum_of_all_data(penalty, resolution, solver):
    adapt = dx.server.residual_balancing(low=1e-12)
    state, metrics = ran(80, penalty, resolution, solver=solver, adapt=adapt)
    theta = np.maximum(state.server.params, 0)
    best = centralised()
    assert joint(theta)[0] - best < 0.02 * abs(best)
    assert joint(START)[0] - best > 0.5 * abs(best)
    assert metrics["penalty"][-1] > 1e-3


@pytest.mark.slow
def test_it_stops():
    stop = dx.server.residuals_within(1e-3, 1e-2)
    state, metrics = ran(80, 0.1, stop=stop)
    ended = int(metrics["done"].argmax())
    assert 2 < ended < 79
    shorter, _ = ran(ended + 1, 0.1, stop=stop)
    assert_trees_equal(
        (state.server, state.clients.memory), (shorter.server, shorter.clients.memory)
    )


def test_on_a_graph_it_ends_there_as_well():
    kernel, source = given()
    ring = dx.gossip.ring(N)
    with jax.enable_x64(True):
        algorithm = dx.decentralized.consensus(gp.local_weights(kernel), 20.0, ring)
        state = algorithm.init(KEY, jnp.asarray(START))
        run = jax.jit(lambda state, source: dx.rollout(algorithm, state, source, KEY, 150)[0])
        found = as_numpy(run(state, source).clients.params)
    best = centralised()
    assert np.abs(found - found.mean(0)).max() < 0.02
    for theta in np.maximum(found, 0):
        assert joint(theta)[0] - best < 0.05 * abs(best)


@pytest.mark.slow
def test_penalties_and_resolutions_sweep_as_one_program():
    _, source = given()
    penalties, resolutions = jnp.asarray([0.5, 2.0]), jnp.asarray([0.0, 1e-2])
    with jax.enable_x64(True):
        run = program(3)
        swept = jax.jit(jax.vmap(run, in_axes=(0, 0, None)))(penalties, resolutions, source)
        for place in range(2):
            alone = run(penalties[place], resolutions[place], source)
            one = jax.tree.map(lambda leaf, p=place: leaf[p], swept)
            assert_trees_close(
                one[0].clients.memory, alone[0].clients.memory, rtol=1e-9, atol=1e-12
            )
    assert np.abs(swept[0].server.params[0] - swept[0].server.params[1]).max() > 1e-3


@pytest.mark.slow
def test_a_mesh_gives_what_a_single_device_gives():
    rows = np.split(np.arange(32), 8)
    kernel, agents, observed = task(rows=rows)
    source = gp.observing(observed)
    algorithm = gp.slim_kl(kernel, 8, 1.0, resolution=1e-3, solver=gp.mm(2))
    state = algorithm.init(KEY, gp.starting_weights(kernel, agents))
    measure = dx.evaluation.server_model(gp.joint_objective(kernel, observed))
    options = {"rounds": 3, "key": KEY, "evaluate": measure}
    one, history = dx.run(algorithm, state, source, **options)
    eight, dealt = dx.run(algorithm, state, source, **options, mesh=dx.client_mesh())
    # A number that lies between two points may be rounded to the other one.
    assert_trees_close(one.server.params, eight.server.params, rtol=1e-4, atol=2.1e-3)
    assert np.mean(np.asarray(one.server.params) != np.asarray(eight.server.params)) < 0.3
    np.testing.assert_allclose(
        history.metrics["local_objective"], dealt.metrics["local_objective"], rtol=1e-3, atol=1e-2
    )
    plain = gp.slim_kl(kernel, 8, 1.0, solver=gp.mm(2))
    state = plain.init(KEY, gp.starting_weights(kernel, agents))
    one, _ = dx.run(plain, state, source, rounds=3, key=KEY)
    eight, _ = dx.run(plain, state, source, rounds=3, key=KEY, mesh=dx.client_mesh())
    assert_trees_close(one.clients.memory, eight.clients.memory, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(one.server.params, eight.server.params, rtol=1e-3, atol=1e-5)


def test_an_absent_agent_keeps_its_weights():
    kernel, source = given()
    with jax.enable_x64(True):
        algorithm = gp.slim_kl(kernel, N, 1.0, channel=dx.channel.lossy(0.0), solver=gp.mm(1))
        state = algorithm.init(KEY, jnp.asarray(START))
        round = source.draw(KEY, 0)
        without = round._replace(weights=round.weights.at[1].set(0.0))
        after, metrics = jax.jit(algorithm.step)(state, without)
    assert metrics["clients_reporting"] == N - 1
    before = of_agent(state.clients.memory, 1)
    kept = of_agent(after.clients.memory, 1)
    assert_trees_equal((kept.params, kept.dual), (before.params, before.dual))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": 0.0}, "penalty must be a finite number in"),
        ({"penalty": -1.0}, "penalty must be a finite number in"),
        ({"resolution": -1e-3}, "resolution must be a finite number in"),
        ({"kernel": None}, "kernel must be of type MultipleKernel"),
        ({"clients": 0}, "clients must be an integer >= 1"),
        ({"solver": lambda: 3}, "solver must be a function of 4 arg"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        gp.slim_kl(**{"kernel": given()[0], "clients": N} | options)


def test_bad_starts_and_sources_are_refused():
    kernel, _ = given()
    algorithm = gp.slim_kl(kernel, N)
    for start in (-jnp.ones(COMPONENTS), jnp.ones(COMPONENTS + 1)):
        with pytest.raises(ValueError, match=r"params must be .* Start at starting_weights"):
            algorithm.init(KEY, start)
    state = algorithm.init(KEY, jnp.asarray(START, jnp.float32))
    data = dx.data.Dataset(jnp.ones((N, 2)), jnp.arange(N))
    other = dx.Federation(data, dx.data.from_indices([[0], [1], [2]]), local_steps=1, batch_size=1)
    with pytest.raises(TypeError, match="agents' observations"):
        jax.eval_shape(algorithm.step, state, other.draw(KEY, 0))
