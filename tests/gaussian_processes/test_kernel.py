"""GSMP kernels in five ways, their likelihood and its gradients, against float64 NumPy."""

import functools
import warnings

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
    Y,
    as_numpy,
    components,
    joint,
    of_agent,
    reference,
    task,
)

import dflax as dx
from dflax import gaussian_processes as gp
from dflax.gaussian_processes.triangular import inverse_of, triangular_inverse

MODES = ("stored", "recomputed", "factored", "lagged", "even")


@functools.cache
def found(mode, **options):
    with jax.enable_x64(True):
        kernel, _, observed = task(mode, **options)
        at = functools.partial(gp.evidence, kernel)
        each = jax.jit(jax.vmap(at, in_axes=(0, None)))(observed, jnp.asarray(THETA))
        return as_numpy(each)


@pytest.mark.some(2)
@pytest.mark.parametrize("mode", MODES)
def test_value_and_traces_are_those_of_numpy_whatever_the_padding(mode):
    for agent, rows in enumerate(ROWS):
        value, g, q = reference(THETA, rows)
        own = of_agent(found(mode), agent)
        np.testing.assert_allclose(own.value, value, rtol=1e-11)
        np.testing.assert_allclose(own.g, g, rtol=1e-9)
        np.testing.assert_allclose(own.q, q, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["factored", "even"])
def test_pure_cosines(mode):
    """Deviations of 0: components of rank 2, and traces without an inverse."""
    with jax.enable_x64(True):
        kernel, _, observed = task(mode, deviation=0.0)
        at = functools.partial(gp.evidence, kernel)
        own = as_numpy(jax.jit(at)(of_agent(observed, 1), jnp.asarray(THETA)))
    value, g, q = reference(THETA, ROWS[1], deviation=0.0)
    np.testing.assert_allclose(own.value, value, rtol=1e-11)
    np.testing.assert_allclose(own.g, g, rtol=1e-9)
    np.testing.assert_allclose(own.q, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["recomputed", "even"])
def test_the_gradient_is_g_minus_q(mode):
    with jax.enable_x64(True):
        kernel, _, observed = task(mode)
        own = of_agent(observed, 0)
        slope = jax.jit(jax.grad(lambda theta: gp.objective(kernel, own, theta)))(
            jnp.asarray(THETA)
        )
    np.testing.assert_allclose(slope, (found(mode).g - found(mode).q)[0], rtol=1e-9)
    step = 1e-5 * np.eye(COMPONENTS)[3]
    difference = reference(THETA + step, ROWS[0])[0] - reference(THETA - step, ROWS[0])[0]
    np.testing.assert_allclose(slope[3], difference / 2e-5, rtol=1e-6)


@pytest.mark.some(2)
@pytest.mark.parametrize("mode", MODES)
def test_single_precision_is_near(mode):
    kernel, _, observed = task(mode)
    own = jax.jit(functools.partial(gp.evidence, kernel))(of_agent(observed, 2), THETA)
    assert own.g.dtype == jnp.float32
    for seen, true in zip(own, reference(THETA, ROWS[2]), strict=True):
        np.testing.assert_allclose(seen, true, rtol=2e-3, atol=1e-3)


@pytest.mark.some(2)
@pytest.mark.parametrize("mode", ["stored", "recomputed", "factored"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_products_over_dimensions(mode, dimensions):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(11, dimensions)) * 3, rng.normal(size=11)
    points = rng.normal(size=(4, dimensions)) * 3
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore", gp.BelowNyquist)
        grid = gp.spectral_grid(
            dimensions, 7, sampling="random", deviation=0.02, key=jax.random.key(3)
        )
        kernel = gp.gsmp(grid, mode=mode, chunk=3)
        agents = gp.agents(x, y, dx.data.from_indices([np.arange(11)]))
        observed = of_agent(gp.observe(kernel, agents, 0.1), 0)
        theta = jnp.asarray(THETA[:7])
        whole = kernel.covariance(observed.cache, theta)
        across = kernel.cross(theta, jnp.asarray(points), jnp.asarray(x))
        own = as_numpy(jax.jit(functools.partial(gp.evidence, kernel))(observed, theta))
        means, deviations = as_numpy(grid)
    K = components(means, deviations, x, x)
    np.testing.assert_allclose(whole, np.tensordot(THETA[:7], K, 1), atol=1e-12)
    np.testing.assert_allclose(
        across, np.tensordot(THETA[:7], components(means, deviations, points, x), 1), atol=1e-12
    )
    inverse = np.linalg.inv(np.tensordot(THETA[:7], K, 1) + 0.1 * np.eye(11))
    np.testing.assert_allclose(own.g, np.einsum("aij,ij->a", K, inverse), rtol=1e-9)
    np.testing.assert_allclose(
        own.q, np.einsum("aij,i,j->a", K, inverse @ y, inverse @ y), rtol=1e-9, atol=1e-12
    )
    assert np.linalg.eigvalsh(K).min() > -1e-10
    np.testing.assert_allclose(np.einsum("aii->ai", K), 1)


@pytest.mark.some(1)
@pytest.mark.parametrize("deviation", [0.0, 1e-3, 0.05])
def test_lags_of_any_distances(deviation):
    """Also components so wide that the Gaussian factor is not split."""
    rng = np.random.default_rng(3)
    x, y = np.sort(rng.uniform(0, 60, 21)), rng.normal(size=21)
    with jax.enable_x64(True):
        grid = gp.spectral_grid(1, COMPONENTS, deviation=deviation)
        kernel = gp.gsmp(grid, mode="lagged", reach=60.0)
        agents = gp.agents(x, y, dx.data.from_indices([np.arange(21)]), length=23)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gp.BelowNyquist)
            observed = of_agent(gp.observe(kernel, agents, NOISE), 0)
        whole = kernel.covariance(observed.cache, jnp.asarray(THETA))
        at = functools.partial(gp.evidence, kernel)
        own = as_numpy(jax.jit(at)(observed, jnp.asarray(THETA)))
    K = components(*as_numpy(grid), x[:, None], x[:, None])
    C = np.tensordot(THETA, K, 1)
    np.testing.assert_allclose(whole[:21, :21], C, atol=1e-11)
    assert not np.any(whole[21:])
    inverse = np.linalg.inv(C + NOISE * np.eye(21))
    v = inverse @ y
    np.testing.assert_allclose(own.g, np.einsum("aij,ij->a", K, inverse), rtol=1e-9)
    np.testing.assert_allclose(own.q, np.einsum("aij,i,j->a", K, v, v), rtol=1e-8, atol=1e-11)


def test_a_component_of_deviation_0_has_rank_2():
    with jax.enable_x64(True):
        _, _, observed = task("stored", deviation=0.0)
        cache = np.asarray(observed.cache)[1]
    assert (np.linalg.matrix_rank(cache, tol=1e-8) <= 2).all()
    assert np.linalg.matrix_rank(cache[0], tol=1e-8) == 1
    np.testing.assert_allclose(np.einsum("aii->ai", cache), 1)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 19])
def test_inverses_by_halves(n):
    rng = np.random.default_rng(n)
    half = rng.normal(size=(n, n + 2))
    with jax.enable_x64(True):
        factor = jnp.linalg.cholesky(jnp.asarray(half @ half.T))
        lower, whole = jax.jit(lambda L: (triangular_inverse(L), inverse_of(L)))(factor)
    np.testing.assert_allclose(lower, np.linalg.inv(factor), atol=1e-9)
    np.testing.assert_allclose(whole, np.linalg.inv(half @ half.T), rtol=1e-6, atol=1e-9)


def test_grids():
    grid = gp.spectral_grid(2, 5)
    np.testing.assert_allclose(grid.means, np.tile(np.linspace(0, 0.5, 5)[:, None], (1, 2)))
    np.testing.assert_allclose(grid.deviations, 1e-3)
    assert gp.spectral_grid().means.shape == (500, 1)
    assert gp.spectral_grid(3).means.shape == (300, 3)
    drawn = gp.spectral_grid(2, 2000, sampling="random", highest=0.25, key=jax.random.key(0)).means
    assert drawn.min() >= 0
    assert drawn.max() < 0.25
    np.testing.assert_allclose(drawn.mean(0), 0.125, atol=0.01)
    assert abs(np.corrcoef(np.asarray(drawn).T)[0, 1]) < 0.1


def test_ways_are_chosen_by_deviations_and_dimensions():
    one, four, five = (gp.spectral_grid(p, 3) for p in (1, 4, 5))
    unlike = gp.Grid(one.means, jnp.asarray([[0.1], [0.2], [0.1]]))
    from_file = [
        gp.gsmp(grid).covariance.__module__.rpartition(".")[2] for grid in (one, four, five, unlike)
    ]
    assert from_file == ["factored", "factored", "stored", "stored"]


def test_inputs_below_nyquist_are_warned_of_with_the_bound():
    kernel = gp.gsmp(gp.spectral_grid(1, 4))
    close = gp.agents(X / 4, Y, dx.data.from_indices(ROWS))
    with pytest.warns(gp.BelowNyquist, match=r"typically 0\.25 apart, nearer than 1: .* up to 2,"):
        gp.observe(kernel, close, NOISE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gp.observe(gp.gsmp(gp.spectral_grid(1, 4, highest=2.0)), close, NOISE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: gp.spectral_grid(1, 0), "components must be an integer >= 1"),
        (
            lambda: gp.gsmp(gp.Grid(jnp.zeros((0, 1)), jnp.zeros((0, 1)))),
            r"grid.means .* A, P >= 1",
        ),
        (
            lambda: gp.gsmp(gp.Grid(-jnp.ones((2, 1)), jnp.ones((2, 1)))),
            "grid.means must be finite",
        ),
        (lambda: gp.gsmp(gp.Grid(jnp.ones((2, 1)), jnp.ones((3, 1)))), "grid.deviations"),
        (lambda: gp.spectral_grid(1, 3, sampling="random"), "key must be given"),
        (lambda: gp.gsmp(gp.spectral_grid(2, 3), mode="even"), "in one dimension"),
        (lambda: gp.gsmp(gp.spectral_grid(1, 3), mode="lagged"), "reach must be given"),
        (lambda: gp.gsmp(gp.spectral_grid(1, 3), mode="lagged", reach=0.0), "reach must be"),
        (lambda: gp.gsmp(gp.spectral_grid(1, 3), reach=9.0), "reach must be None where mode is"),
        (
            lambda: gp.observe(
                gp.gsmp(gp.spectral_grid(1, 3), mode="lagged", reach=5.0), task()[1], 0.1
            ),
            "at most reach = 5 apart, got 8",
        ),
        (
            lambda: gp.gsmp(
                gp.Grid(jnp.ones((2, 1)), jnp.asarray([[0.1], [0.2]])), mode="factored"
            ),
            "the same deviations",
        ),
        (lambda: task(noise=0.0), "noise must be .* Without noise C has no inverse"),
        (lambda: task(rows=[[0, 1, 3], [4, 5, 6]]), "evenly spaced"),
        (
            lambda: gp.agents(X[:4], Y[:4], dx.data.from_indices([[0, 9]])),
            "partition must name rows of the 4",
        ),
        (lambda: gp.agents(X[:4], Y, dx.data.from_indices([[0]])), "inputs must have shape"),
        (
            lambda: gp.observe(gp.gsmp(gp.spectral_grid(2, 3)), task()[1], 0.1),
            "inputs of 2 dimensions",
        ),
    ],
)
def test_bad_kernels_and_observations_are_refused(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        change()


def test_the_joint_objective_clips_and_counts():
    with jax.enable_x64(True):
        kernel, _, observed = task()
        measure = jax.jit(gp.joint_objective(kernel, observed, active=0.1))
        seen = as_numpy(measure(jnp.asarray(THETA).at[2].set(-0.3)))
    clipped = THETA * (np.arange(COMPONENTS) != 2)
    np.testing.assert_allclose(seen["objective"], joint(clipped)[0], rtol=1e-11)
    assert seen["active"] == (clipped > 0.1).sum()
