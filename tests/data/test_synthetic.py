import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import data

KEY = jax.random.key(0)
REGRESSION = data.least_squares(KEY, clients=6, dimension=4, samples=15)
QUADRATICS = data.quadratics(KEY, 5, 3, curvature_heterogeneity=0.7)
POINTS = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)


def client_rows(task):
    inputs, labels = (np.asarray(a, np.float64) for a in (task.data.train.inputs, task.data.labels))
    return [(inputs[np.sort(rows)], labels[np.sort(rows)]) for rows in task.partition.as_lists()]


def test_least_squares_optimum_by_the_normal_equations():
    clients = client_rows(REGRESSION)
    hessians = [rows.T @ rows / len(rows) for rows, _ in clients]
    hessian = np.mean(hessians, 0)
    right = np.mean([rows.T @ b / len(rows) for rows, b in clients], 0)
    np.testing.assert_allclose(REGRESSION.optimum, np.linalg.solve(hessian, right), rtol=1e-9)
    value = np.mean([np.mean((rows @ REGRESSION.optimum - b) ** 2) / 2 for rows, b in clients])
    assert REGRESSION.value == pytest.approx(value, rel=1e-12)
    for (rows, b), best in zip(clients, REGRESSION.client_optima, strict=True):
        np.testing.assert_allclose(rows.T @ (rows @ best - b), 0.0, atol=1e-10)
    largest = max(np.linalg.eigvalsh(h)[-1] for h in hessians)
    assert REGRESSION.smoothness == pytest.approx(largest)
    assert REGRESSION.strong_convexity == pytest.approx(np.linalg.eigvalsh(hessian)[0])


def test_least_squares_evaluators():
    clients = client_rows(REGRESSION)
    for x in POINTS[:3]:
        value = np.mean([np.mean((rows @ x - b) ** 2) / 2 for rows, b in clients])
        gradient = np.mean([rows.T @ (rows @ x - b) / len(rows) for rows, b in clients], 0)
        assert float(REGRESSION.objective(x)) == pytest.approx(value, rel=1e-5)
        gap = value - REGRESSION.value
        assert float(REGRESSION.suboptimality(x)) == pytest.approx(gap, rel=1e-5)
        norm = float(REGRESSION.gradient_norm(x))
        assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    assert float(REGRESSION.suboptimality(REGRESSION.optimum)) < 1e-12


def test_losses_have_the_gradient_of_the_objective():
    everyone = jnp.arange(90)
    value, _ = data.least_squares_loss(POINTS[0], REGRESSION.data.train.fetch(everyone))
    assert float(value) == pytest.approx(float(REGRESSION.objective(POINTS[0])), rel=1e-5)
    x = POINTS[0, :3]
    batch = QUADRATICS.data.train.fetch(jnp.arange(5))
    value, gradient = jax.value_and_grad(lambda x: data.quadratic_loss(x, batch)[0])(x)
    assert float(value) == pytest.approx(float(QUADRATICS.objective(x)), rel=1e-5)
    assert float(jnp.linalg.norm(gradient)) == pytest.approx(
        float(QUADRATICS.gradient_norm(x)), rel=1e-5
    )


def test_masked_examples_do_not_count():
    batch = REGRESSION.data.train.fetch(jnp.arange(4))
    masked = batch._replace(mask=jnp.array([1.0, 1.0, 0.0, 0.0]))
    first = REGRESSION.data.train.fetch(jnp.arange(2))
    np.testing.assert_allclose(
        data.least_squares_loss(POINTS[0], masked)[0],
        data.least_squares_loss(POINTS[0], first)[0],
        rtol=1e-6,
    )


def test_without_heterogeneity_and_noise_all_optima_are_one():
    task = data.least_squares(KEY, 4, 3, 10, heterogeneity=0.0, noise=0.0, condition=2.0)
    np.testing.assert_allclose(task.client_optima, task.models, atol=1e-5)
    np.testing.assert_allclose(task.client_optima, np.tile(task.optimum, (4, 1)), atol=1e-5)
    assert task.value < 1e-10


def test_heterogeneity_scales_the_distance_of_the_models():
    spread = [
        np.ptp(data.least_squares(KEY, 4, 3, 10, heterogeneity=h).models, axis=0)
        for h in (1.0, 3.0)
    ]
    np.testing.assert_allclose(3 * spread[0], spread[1])
    offsets = [data.quadratics(KEY, 4, 3, heterogeneity=h).client_optima for h in (0.0, 2.0)]
    np.testing.assert_array_equal(offsets[0], np.tile(offsets[0][:1], (4, 1)))
    assert np.ptp(offsets[1], axis=0).min() > 0


def test_quadratics_by_hand():
    A, b = (np.asarray(a, np.float64) for a in (QUADRATICS.hessians, QUADRATICS.client_optima))
    best = np.linalg.solve(A.sum(0), sum(h @ c for h, c in zip(A, b, strict=True)))
    np.testing.assert_allclose(QUADRATICS.optimum, best, rtol=1e-10)
    value = np.mean([(best - c) @ h @ (best - c) / 2 for h, c in zip(A, b, strict=True)])
    assert QUADRATICS.value == pytest.approx(value, rel=1e-12)
    np.testing.assert_array_equal(A, A.swapaxes(1, 2))
    eigenvalues = np.linalg.eigvalsh(A)
    assert 0.1 - 1e-6 <= eigenvalues.min() == pytest.approx(QUADRATICS.strong_convexity)
    assert 1.0 + 1e-6 >= eigenvalues.max() == pytest.approx(QUADRATICS.smoothness)
    for i, rows in enumerate(QUADRATICS.partition.as_lists()):
        assert rows.tolist() == [i]


def test_quadratics_share_curvature_by_default():
    hessians = data.quadratics(KEY, 4, 3).hessians
    np.testing.assert_array_equal(hessians, np.tile(hessians[:1], (4, 1, 1)))
    assert np.ptp(QUADRATICS.hessians, axis=0).max() > 0.1


def test_tasks_are_arguments_of_compiled_programs_and_follow_their_key():
    gap = jax.jit(lambda task, x: task.suboptimality(x))
    np.testing.assert_allclose(
        gap(REGRESSION, POINTS[0]), REGRESSION.suboptimality(POINTS[0]), rtol=1e-5
    )
    again, other = (data.least_squares(jax.random.key(s), 6, 4, 15) for s in (0, 1))
    np.testing.assert_array_equal(again.optimum, REGRESSION.optimum)
    assert not np.array_equal(other.optimum, REGRESSION.optimum)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: data.least_squares(0, 2, 2, 2), TypeError, "typed JAX key"),
        (lambda: data.least_squares(KEY, 0, 2, 2), ValueError, "clients"),
        (lambda: data.least_squares(KEY, 2, 9, 4), ValueError, "unique optimum"),
        (lambda: data.least_squares(KEY, 2, 2, 2, noise=-1.0), ValueError, "noise"),
        (lambda: data.least_squares(KEY, 2, 2, 2, heterogeneity=-1.0), ValueError, "heterog"),
        (lambda: data.quadratics(KEY, 2, 2, condition=0.5), ValueError, "condition"),
        (lambda: data.quadratics(KEY, 2, 2, 1.0, 1.5), ValueError, "curvature_heterogeneity"),
        (lambda: data.quadratics(KEY, 2, 2.0), TypeError, "dimension"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
