"""SLIM-KL over two input dimensions: rounds, optimum and predictions against float64 NumPy."""

import jax
import numpy as np
import pytest
from gaussian_series import KEY, as_numpy, components
from scipy.optimize import minimize

import dflax as dx
from dflax import gaussian_processes as gp

A, NOISE, AGENTS = 9, 0.05, 2
PLACES = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0), indexing="ij"), -1).reshape(-1, 2)
ROWS = [np.flatnonzero(PLACES[:, 0] < 3), np.flatnonzero(PLACES[:, 0] >= 3)]
RNG = np.random.default_rng(6)
Y = np.sin(2 * np.pi * PLACES @ [0.1, 0.0]) * np.cos(2 * np.pi * PLACES @ [0.0, 0.3])
Y = Y + 0.2 * RNG.normal(size=len(Y))
START = np.full(A, np.mean(Y**2) / A)
POINTS = np.asarray([[0.5, 1.25], [6.0, 2.0], [2.0, -1.5]])


def numpy_grid(sampling):
    """The grid, and the same in NumPy."""
    key = jax.random.key(1) if sampling == "random" else None
    grid = gp.spectral_grid(2, A, sampling=sampling, deviation=0.02, highest=0.6, key=key)
    return grid, as_numpy(grid)


def evidence(theta, rows, grid):
    """The value, g and q of one agent."""
    K = components(*grid, PLACES[rows], PLACES[rows])
    inverse = np.linalg.inv(np.tensordot(theta, K, 1) + NOISE * np.eye(len(rows)))
    v = inverse @ Y[rows]
    value = Y[rows] @ v - np.linalg.slogdet(inverse)[1]
    return value, np.einsum("aij,ij->a", K, inverse), np.einsum("aij,i,j->a", K, v, v)


def root(p, b, rho):
    roots = np.roots([rho, b, 0.0, -p])
    return roots[np.abs(roots.imag) < 1e-8].real.max()


def numpy_rounds(grid, rounds, rho):
    """ADMM with one step of MM, in NumPy: the weights, the agents' and their duals."""
    theta = START
    zeta, duals = np.tile(START, (AGENTS, 1)), np.zeros((AGENTS, A))
    for _ in range(rounds):
        for agent, rows in enumerate(ROWS):
            z = np.maximum(zeta[agent], 1e-12)
            _, g, q = evidence(z, rows, grid)
            b = g + duals[agent] - rho * theta
            zeta[agent] = [root(*three, rho) for three in zip(z * z * q, b, strict=True)]
        theta = (zeta + duals / rho).mean(0)
        duals = duals + rho * (zeta - theta)
    return theta, zeta, duals


def agreed(grid, rounds, rho, solver, **options):
    """Our run with its agents and kernel."""
    kernel = gp.gsmp(grid)
    agents = gp.agents(PLACES, Y, dx.data.from_indices(ROWS))
    source = gp.observing(gp.observe(kernel, agents, NOISE))
    algorithm = gp.slim_kl(kernel, AGENTS, rho, solver=solver, **options)
    state = algorithm.init(KEY, gp.starting_weights(kernel, agents))
    run = jax.jit(lambda state, source: dx.rollout(algorithm, state, source, KEY, rounds)[0])
    return kernel, agents, as_numpy(run(state, source))


@pytest.mark.some(1)
@pytest.mark.parametrize("sampling", ["uniform", "random"])
def test_rounds_and_predictions_are_those_of_numpy(sampling):
    with jax.enable_x64(True):
        grid, plain = numpy_grid(sampling)
        kernel, agents, state = agreed(grid, 3, 2.0, gp.mm(1), adapt=None)
        found = gp.predict(kernel, np.maximum(state.server.params, 0), agents, NOISE, POINTS)
        joined = as_numpy(gp.fused(found))
    theta, zeta, duals = numpy_rounds(plain, 3, 2.0)
    np.testing.assert_allclose(state.server.params, theta, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(state.clients.memory.params, zeta, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(state.clients.memory.dual, duals, rtol=1e-7, atol=1e-10)
    means, variances = [], []
    kept = np.maximum(theta, 0)
    for rows in ROWS:
        C = np.tensordot(kept, components(*plain, PLACES[rows], PLACES[rows]), 1)
        across = np.tensordot(kept, components(*plain, POINTS, PLACES[rows]), 1)
        inverse = np.linalg.inv(C + NOISE * np.eye(len(rows)))
        means.append(across @ inverse @ Y[rows])
        variances.append(kept.sum() + NOISE - np.einsum("mi,ij,mj->m", across, inverse, across))
    np.testing.assert_allclose(found.mean, means, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(found.variance, variances, rtol=1e-7)
    precision = 1 / np.array(variances)
    expected = (precision * means).sum(0) / precision.sum(0)
    np.testing.assert_allclose(joined.mean, expected, rtol=1e-7, atol=1e-10)


def test_it_ends_near_the_optimum_of_all_data():
    with jax.enable_x64(True):
        grid, plain = numpy_grid("random")
        adapt = dx.server.residual_balancing(low=1e-12)
        _, _, state = agreed(grid, 80, 0.1, gp.mm(10), adapt=adapt)

    def joint(theta):
        found = [evidence(theta, rows, plain) for rows in ROWS]
        return sum(f[0] for f in found), sum(f[1] - f[2] for f in found)

    best = minimize(joint, START, jac=True, method="L-BFGS-B", bounds=[(0, None)] * A).fun
    reached = joint(np.maximum(state.server.params, 0))[0]
    assert reached - best < 0.01 * abs(best)
    assert joint(START)[0] - best > 0.1 * abs(best)
