import jax
import jax.numpy as jnp
import numpy as np
import pytest
from admm_tasks import LABELS, ROWS, TASK, D, G, H, N, objectives

import dflax as dx
from dflax.local import quadratic_objectives

POINTS = np.random.default_rng(1).normal(size=(N, D))


def test_the_decomposition_is_of_every_clients_own_least_squares():
    q = jax.tree.map(np.asarray, objectives())
    gram = np.einsum("kri,kr,krj->kij", q.basis, q.curvature, q.basis)
    np.testing.assert_allclose(gram, G, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.einsum("kri,kr->ki", q.basis, q.slope), H, rtol=1e-4, atol=1e-4)
    # Clients of 3 to 5 rows share one array of the largest rank, filled with zeros.
    assert q.basis.shape == (N, max(len(rows) for rows in ROWS), D)
    for rows, basis in zip(ROWS, q.basis, strict=True):
        np.testing.assert_array_equal(basis[len(rows) :], 0.0)


@pytest.mark.parametrize("rho", [0.05, 3.0])
def test_proximal_points_solve_their_normal_equations(rho):
    q = objectives()
    ours = jax.vmap(lambda q, r: q.proximal_point(r, rho))(q, jnp.asarray(POINTS))
    exact = np.linalg.solve(G + rho * np.eye(D), (H + rho * POINTS)[..., None])[..., 0]
    np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-5)
    center = jnp.asarray(POINTS[0])
    exact = np.linalg.solve(G + rho * np.eye(D), (H + rho * POINTS[0])[..., None])[..., 0]
    np.testing.assert_allclose(
        dx.local.proximal_points(q, center, rho), exact, rtol=1e-4, atol=1e-5
    )


def test_moves_toward_a_target_are_full_where_the_objective_is_flat():
    x, target = POINTS, np.roll(POINTS, 1, axis=0)
    ours = jax.vmap(lambda q, a, b: q.toward(a, b, 0.5))(
        objectives(), *map(jnp.asarray, (x, target))
    )
    P = 0.5 * np.linalg.inv(G + 0.5 * np.eye(D))
    exact = x + np.einsum("kij,kj->ki", P, target - x)
    np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-5)


def test_curvatures_of_a_million_beside_zeros_do_no_harm_in_single_precision():
    generator = np.random.default_rng(2)
    A = 100 * generator.normal(size=(20, 40)).astype(np.float32)
    b = (A.astype(np.float64) @ generator.normal(size=40)).astype(np.float32)
    data = dx.data.Dataset(jnp.asarray(A), jnp.asarray(b))
    one = dx.data.from_indices([np.arange(20)])
    center = generator.normal(size=40).astype(np.float32)
    ours = dx.local.proximal_points(quadratic_objectives(data, one), jnp.asarray(center), 1.0)[0]
    wide = A.astype(np.float64)
    gram, right = wide.T @ wide + np.eye(40), wide.T @ b.astype(np.float64) + center
    exact = np.linalg.solve(gram, right)
    np.testing.assert_allclose(ours, exact, atol=2e-5)


def test_scale_two_is_a_square_without_its_half():
    once, twice = objectives(), objectives(scale=2.0)
    np.testing.assert_allclose(twice.curvature, 2 * once.curvature, rtol=1e-5)
    center = jnp.zeros(D)
    np.testing.assert_allclose(
        dx.local.proximal_points(twice, center, 2.0),
        dx.local.proximal_points(once, center, 1.0),
        atol=1e-5,
    )


def test_more_rows_than_the_model_is_long():
    task = dx.data.least_squares(jax.random.key(1), clients=3, dimension=2, samples=9)
    q = quadratic_objectives(task.data.train, task.partition)
    assert q.basis.shape == (3, 2, 2)
    points = dx.local.proximal_points(q, jnp.zeros(2), 1e-6)
    np.testing.assert_allclose(points, task.client_optima, rtol=1e-3, atol=1e-4)


def test_the_whitened_task_is_weighted_least_squares():
    """The optimum by the normal equations, and as the stationary point of the whitened loss."""
    np.testing.assert_allclose(TASK.information, G.sum(0), rtol=1e-12)
    np.testing.assert_allclose(TASK.optimum, np.linalg.solve(G.sum(0), H.sum(0)), rtol=1e-9)
    batch = TASK.data.fetch(jnp.arange(len(TASK.data)))
    gradient = jax.grad(lambda x: dx.data.least_squares_loss(x, batch)[0])(
        jnp.asarray(TASK.optimum, jnp.float32)
    )
    np.testing.assert_allclose(gradient, 0.0, atol=1e-4)
    # Labels hold the truth and noise whose deviation is 1 after whitening.
    for A, b in zip(ROWS, LABELS, strict=True):
        errors = b - A @ TASK.truth
        np.testing.assert_allclose([errors.mean(), np.mean(errors**2)], [0, 1], atol=1e-4)
    np.testing.assert_allclose([TASK.truth.mean(), np.mean(TASK.truth**2)], [0, 1], atol=1e-12)
    models = jnp.asarray(np.tile(TASK.optimum, (4, 1)), jnp.float32)
    assert TASK.mean_square_deviation(models) < 1e-12
    assert TASK.mean_square_deviation(jnp.zeros(D)) == pytest.approx(1.0)


def task(**options):
    settings = {"clients": 3, "dimension": 4, "samples": (2, 3)} | options
    return dx.data.weighted_least_squares(jax.random.key(0), **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quadratic_objectives(TASK, TASK.partition), "data must be of type Dataset"),
        (lambda: quadratic_objectives(TASK.data, [[0]]), "partition must be of type Partition"),
        (lambda: quadratic_objectives(TASK.data, TASK.partition, scale=0.0), "scale must be"),
        (
            lambda: quadratic_objectives(dx.data.digits().train, TASK.partition),
            r"data must have inputs \[N, d\] and labels \[N\], got",
        ),
        (lambda: task(samples=3), "samples must be a pair"),
        (lambda: task(samples=(3, 2)), r"samples\[1\] must be an integer >= 3, got 2"),
        (lambda: task(noise=0.0), "noise must be a finite number in"),
        (lambda: task(noise=np.ones(4)), r"noise must be one number or have shape \(3,\)"),
        (lambda: task(dimension=50), "samples must give at least dimension=50 rows in all"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
