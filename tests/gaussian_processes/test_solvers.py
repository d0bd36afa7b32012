"""Local steps: cubic roots, monotone majorisation, its optimality conditions, convex approximations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_series import (
    COMPONENTS,
    NOISE,
    ROWS,
    THETA,
    X,
    components,
    jitted,
    of_agent,
    reference,
    task,
)
from scipy.optimize import minimize

import dflax as dx
from dflax import gaussian_processes as gp

CENTER = np.random.default_rng(4).normal(0.05, 0.1, COMPONENTS)


def solved(solver, start, center, rho, agent=1):
    with jax.enable_x64(True):
        kernel, _, observed = task()
        at = functools.partial(gp.evidence, kernel, of_agent(observed, agent))
        given = (jnp.asarray(start), jnp.asarray(center), jnp.asarray(float(rho)))
        return np.asarray(jax.jit(functools.partial(solver, at))(*given))


def lagrangian(zeta, center, rho, agent=1):
    return reference(zeta, ROWS[agent])[0] + rho / 2 * np.sum((zeta - center) ** 2)


def test_roots_in_closed_form():
    """p / t + b t + (rho / 2) (t - theta)^2 with theta in b: b - rho theta."""
    cases = [
        (1, 0, 1, 1.0),
        (2, 1 - 1, 1, 2 ** (1 / 3)),
        (4, 1, 0, 2.0),
        (0, 3, 1, 0),
        (0, -3, 2, 1.5),
    ]
    p, b, rho, root = map(np.asarray, zip(*cases, strict=True))
    np.testing.assert_allclose(
        jitted(gp.positive_root, p * 1.0, b * 1.0, rho * 1.0), root, rtol=1e-15
    )


@pytest.mark.parametrize(("precision", "error"), [(np.float64, 1e-14), (np.float32, 1e-6)])
def test_roots_over_many_decades(precision, error):
    rng = np.random.default_rng(0)
    p, rho = (10 ** rng.uniform(-low, 5, 10_000) for low in (6, 10))
    b = rng.choice([-1, 1], 10_000) * 10 ** rng.uniform(-4, 5, 10_000)
    p, b, rho = (one.astype(precision) for one in (p, b, rho))
    with jax.enable_x64(precision is np.float64):
        found = np.asarray(jax.jit(gp.positive_root)(p, b, rho))
    assert found.dtype == precision
    t = found.astype(np.float64)
    terms = np.stack([rho * t**3, b * t**2, -p.astype(np.float64)])
    assert (t > 0).all()
    # How far the root would have to move, relative to itself.
    slope = 3 * rho * t**3 + 2 * b * t**2
    assert np.abs(terms.sum(0) / slope).max() < error


def test_a_step_without_a_pull_is_multiplicative():
    _, g, q = reference(THETA, ROWS[1])
    found = solved(gp.mm(1), THETA, np.zeros(COMPONENTS), 0.0)
    np.testing.assert_allclose(found, THETA * np.sqrt(q / g), rtol=1e-9)


@pytest.mark.some(1)
@pytest.mark.parametrize("rho", [0.0, 1e-10, 3.0, 200.0])
def test_no_step_raises_the_objective(rho):
    center = CENTER if rho else np.zeros(COMPONENTS)
    walked = [THETA]
    for _ in range(6):
        walked.append(solved(gp.mm(1), walked[-1], center, rho))
    values = [lagrangian(zeta, center, rho) for zeta in walked]
    assert (np.diff(values) < 0).all()
    np.testing.assert_allclose(solved(gp.mm(6), THETA, center, rho), walked[-1], rtol=1e-9)


def test_optimality_conditions_and_the_optimum_of_lbfgs():
    found = solved(gp.mm(4000), THETA, np.zeros(COMPONENTS), 0.0)
    value, g, q = reference(found, ROWS[1])
    positive = found > 1e-4
    assert 2 <= positive.sum() < COMPONENTS
    np.testing.assert_allclose(g[positive], q[positive], rtol=1e-3)
    assert (g[found < 1e-8] >= q[found < 1e-8]).all()

    def lbfgs(theta):
        value, g, q = reference(theta, ROWS[1])
        return value, g - q

    bounds = [(0, None)] * COMPONENTS
    best = minimize(lbfgs, THETA, jac=True, method="L-BFGS-B", bounds=bounds)
    assert value <= best.fun + 1e-3 * abs(best.fun)


@pytest.mark.slow
def test_one_component_that_is_noise():
    """K = I: theta = max(mean y^2 - s2, 0)."""
    y = np.asarray([1.0, -2.0, 0.5, 1.5])
    with jax.enable_x64(True):
        # Observations so far apart that they have nothing to do with each other.
        kernel = gp.gsmp(gp.Grid(jnp.zeros((1, 1)), jnp.full((1, 1), 10.0)))
        agents = gp.agents(np.arange(4.0), y, dx.data.from_indices([np.arange(4)]))
        for noise in (0.3, 5.0):
            own = of_agent(gp.observe(kernel, agents, noise), 0)
            at = functools.partial(gp.evidence, kernel, own)
            np.testing.assert_allclose(
                at(jnp.asarray([0.7])).value,
                np.sum(y**2) / (0.7 + noise) + 4 * np.log(0.7 + noise),
                rtol=1e-12,
            )
            solve = functools.partial(gp.mm(2000), at)
            given = (jnp.asarray([1.0]), jnp.zeros(1), jnp.asarray(0.0))
            least = np.asarray(jax.jit(solve)(*given))
            np.testing.assert_allclose(least, max(np.mean(y**2) - noise, 0), atol=1e-6)


def approximated(start, center, rho, members):
    """L-BFGS-B on one block of the convex approximation at `start`."""
    tangent = reference(start, ROWS[1])[1]

    def surrogate(own):
        theta = np.where(members, 0, start)
        theta[members] = own
        value, _, q = reference(theta, ROWS[1])
        C_part = value - _log_determinant(theta)
        apart = theta - center
        total = C_part + tangent @ theta + rho / 2 * apart @ apart
        return total, (tangent - q + rho * apart)[members]

    best = minimize(
        surrogate,
        start[members],
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * members.sum(),
        options={"maxiter": 500, "ftol": 1e-13},
    )
    return best.x


def _log_determinant(theta):
    means = np.linspace(0, 0.5, COMPONENTS)[:, None]
    x = X[ROWS[1], None]
    K = components(means, np.full_like(means, 1e-3), x, x)
    return np.linalg.slogdet(np.tensordot(theta, K, 1) + NOISE * np.eye(len(x)))[1]


@pytest.mark.parametrize("blocks", [1, 3])
def test_blocks_minimise_the_convex_approximation(blocks):
    found = solved(gp.dsca(blocks, 1, 3000), THETA, CENTER, 20.0)
    number = np.arange(COMPONENTS) * blocks // COMPONENTS
    for block in range(blocks):
        expected = approximated(THETA, CENTER, 20.0, number == block)
        np.testing.assert_allclose(found[number == block], expected, atol=2e-4)


@pytest.mark.some(1)
@pytest.mark.parametrize(("blocks", "damping"), [(1, 1.0), (4, 0.25)])
def test_approximations_lower_the_objective(blocks, damping):
    values, zeta = [lagrangian(THETA, CENTER, 20.0)], THETA
    for _ in range(4):
        zeta = solved(gp.dsca(blocks, 1, 5, damping), zeta, CENTER, 20.0)
        values.append(lagrangian(zeta, CENTER, 20.0))
    assert (np.diff(values) < 0).all()
