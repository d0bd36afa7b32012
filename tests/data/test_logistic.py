import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from dflax import data
from dflax.data.problems.logistic import Linear, _exp_minus_line

KEY = jax.random.key(0)
TASK = data.logistic(KEY, clients=4, dimension=5, samples=30, classes=3, l2=0.01)
ROWS = np.asarray(TASK.data.train.inputs, np.float64)
LABELS = np.asarray(TASK.data.labels)


def objective(flat, rows=ROWS, labels=LABELS, l2=0.01):
    """The objective and its gradient in float64, from the definition."""
    x = flat.reshape(6, 3)
    logits = rows @ x[:-1] + x[-1]
    log_probabilities = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
    value = -log_probabilities[np.arange(len(labels)), labels].mean() + l2 / 2 * (x**2).sum()
    errors = (np.exp(log_probabilities) - np.eye(3)[labels]) / len(labels)
    gradient = np.concatenate([rows.T @ errors, errors.sum(0, keepdims=True)]) + l2 * x
    return value, gradient.ravel()


def flat(params):
    return (
        np.concatenate([params.weights, np.asarray(params.bias)[None]]).astype(np.float64).ravel()
    )


def linear(vector, dtype=np.float32):
    x = np.asarray(vector, dtype).reshape(6, 3)
    return Linear(jnp.asarray(x[:-1]), jnp.asarray(x[-1]))


def test_optimum_is_stationary_and_that_of_scipy():
    value, gradient = objective(flat(TASK.optimum))
    assert np.linalg.norm(gradient) <= 1e-9
    assert TASK.value == pytest.approx(value, rel=1e-12)
    found = scipy.optimize.minimize(objective, np.zeros(18), jac=True, tol=1e-12)
    assert found.fun >= TASK.value - 1e-12
    np.testing.assert_allclose(found.x, flat(TASK.optimum), atol=1e-4)


@pytest.mark.parametrize("l2", [1.0, 1e-5])
def test_optimum_of_two_classes(l2):
    task = data.logistic(KEY, 3, 4, 20, classes=2, l2=l2)
    rows, labels = np.asarray(task.data.train.inputs, np.float64), np.asarray(task.data.labels)
    margin = rows @ task.optimum.weights + task.optimum.bias
    errors = scipy.special.softmax(margin, axis=1) - np.eye(2)[labels]
    gradient = rows.T @ errors / len(rows) + l2 * task.optimum.weights
    np.testing.assert_allclose(gradient, 0.0, atol=1e-9)
    # Softmax over two classes with a penalty is symmetric.
    np.testing.assert_allclose(task.optimum.weights.sum(1), 0.0, atol=1e-7)


@pytest.mark.parametrize("distance", [3.0, 0.1, 1e-3, 1e-5])
def test_suboptimality_is_exact_near_and_far(distance):
    direction = np.random.default_rng(0).normal(size=18)
    point = linear(flat(TASK.optimum) + distance * direction)
    exact = objective(flat(point))[0] - TASK.value
    # The optimum in float32 is off by up to 1e-7, which moves the gap by that times the distance.
    tolerance = 1e-4 * exact + 1e-6 * distance**2 + 3e-7 * distance * np.linalg.norm(direction)
    assert abs(float(TASK.suboptimality(point)) - exact) < min(tolerance, 0.1 * exact)
    assert float(TASK.objective(point)) == pytest.approx(TASK.value + exact, rel=1e-5)


def test_suboptimality_vanishes_at_the_optimum():
    assert 0.0 <= float(TASK.suboptimality(linear(flat(TASK.optimum)))) < 1e-12


def test_exp_minus_line_keeps_its_relative_precision():
    x = np.concatenate([np.geomspace(1e-6, 3, 200), -np.geomspace(1e-6, 3, 200)]).astype(np.float32)
    wide = x.astype(np.longdouble)
    # Six terms are exact to 1e-8 up to 0.2, beyond which nothing cancels in this precision.
    series = sum(wide**k / np.longdouble(np.prod(np.arange(1, k + 1))) for k in range(2, 9))
    exact = np.where(np.abs(wide) < 0.2, series, np.expm1(wide) - wide)
    np.testing.assert_allclose(_exp_minus_line(jnp.asarray(x)), exact.astype(np.float64), rtol=1e-5)


def test_gradient_norm_and_loss():
    point = linear(np.random.default_rng(1).normal(size=18))
    value, gradient = objective(flat(point))
    norm = float(jax.jit(lambda task, x: task.gradient_norm(x))(TASK, point))
    assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    loss, metrics = jax.jit(data.logistic_loss(0.01))(point, TASK.data.train.fetch(jnp.arange(120)))
    assert float(loss) == pytest.approx(value, rel=1e-5)
    hits = (ROWS @ point.weights + point.bias).argmax(1) == LABELS
    assert float(metrics["accuracy"]) == pytest.approx(hits.mean())


def test_masked_examples_do_not_count():
    loss = jax.jit(data.logistic_loss(0.01))
    batch = TASK.data.train.fetch(jnp.arange(4))
    masked = batch._replace(mask=jnp.array([1.0, 1.0, 0.0, 0.0]))
    point = linear(np.ones(18) * np.arange(18))
    first, second = loss(point, masked), loss(point, TASK.data.train.fetch(jnp.arange(2)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), first, second)


def test_smoothness_bounds_the_curvature():
    point = np.random.default_rng(2).normal(size=(2, 18))
    for rows in TASK.partition.as_lists():
        own = [objective(p, ROWS[rows], LABELS[rows])[1] for p in point]
        ratio = np.linalg.norm(own[0] - own[1]) / np.linalg.norm(point[0] - point[1])
        assert 0.01 <= ratio <= TASK.smoothness


@pytest.mark.parametrize("part", ["train", "test"])
def test_clients_label_by_their_models(part):
    examples = getattr(TASK.data, part)
    inputs = np.asarray(examples.inputs, np.float64).reshape(4, 30, 5)
    logits = inputs @ TASK.models.weights + TASK.models.bias[:, None]
    np.testing.assert_array_equal(logits.argmax(-1).ravel(), examples.labels)


def test_alpha_and_beta_zero_is_iid():
    task = data.logistic(KEY, 8, 5, 200, classes=3, alpha=0.0, beta=0.0)
    jax.tree.map(
        lambda m: np.testing.assert_array_equal(m, np.tile(m[:1], (8, *[1] * (m.ndim - 1)))),
        task.models,
    )
    inputs = np.asarray(task.data.train.inputs).reshape(8, 200, 5)
    np.testing.assert_allclose(inputs.mean(1), 0.0, atol=0.35)
    shares = data.label_distribution(task.partition, task.data.labels, 3)
    np.testing.assert_allclose(shares, shares.mean(0) * np.ones((8, 1)), atol=0.15)


def test_alpha_moves_models_and_beta_moves_inputs():
    models = data.logistic(KEY, 4, 3, 20, classes=3, alpha=4.0, beta=0.0)
    assert np.ptp(models.models.weights, axis=0).min() > 0.1
    moved = data.logistic(KEY, 4, 3, 50, classes=3, alpha=0.0, beta=100.0)
    means = np.asarray(moved.data.train.inputs).reshape(4, 50, 3).mean(1)
    assert np.ptp(means, axis=0).min() > 2.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: data.logistic(0, 2, 2, 2), TypeError, "typed JAX key"),
        (lambda: data.logistic(KEY, 2, 2, 2, classes=1), ValueError, "classes"),
        (lambda: data.logistic(KEY, 2, 2, 2, alpha=-1.0), ValueError, "alpha"),
        (lambda: data.logistic(KEY, 2, 2, 2, beta=np.nan), ValueError, "beta"),
        (lambda: data.logistic(KEY, 2, 2, 2, l2=0.0), ValueError, "l2"),
        (lambda: data.logistic(KEY, 2, 2, 0), ValueError, "samples"),
        (lambda: data.logistic_loss(-1.0), ValueError, "l2"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
