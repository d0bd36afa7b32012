"""Predictions and their fusion in float64 NumPy; the noise's variance; kernels fitted by likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_series import COMPONENTS, NOISE, ROWS, THETA, X, Y, components, task
from scipy.optimize import minimize

from dflax import gaussian_processes as gp

POINTS = np.asarray([3.5, 40.0, 77.0])


def mixture(left, right, theta=THETA):
    means = np.linspace(0, 0.5, COMPONENTS)[:, None]
    K = components(means, np.full_like(means, 1e-3), left[:, None], right[:, None])
    return np.tensordot(theta, K, 1)


def conditional(kernel, x, y, noise, points):
    inverse = np.linalg.inv(kernel(x, x) + noise * np.eye(len(x)))
    across = kernel(points, x)
    variance = np.diag(kernel(points, points)) + noise
    return across @ inverse @ y, variance - np.einsum("mi,ij,mj->m", across, inverse, across)


@pytest.mark.some(1)
@pytest.mark.parametrize("mode", ["recomputed", "factored", "even"])
def test_predictions_and_their_fusion(mode):
    with jax.enable_x64(True):
        kernel, agents, _ = task(mode)
        noise = jnp.asarray([NOISE, 2 * NOISE, NOISE])
        thetas = jnp.asarray(np.stack([THETA, THETA[::-1], THETA]))
        found = gp.predict(kernel, thetas, agents, noise, POINTS)
        joined = gp.fused(found)
        same = gp.predict(kernel, jnp.asarray(THETA), agents, NOISE, POINTS)
    expected = [
        conditional(lambda a, b, t=theta: mixture(a, b, t), X[rows], Y[rows], float(own), POINTS)
        for rows, theta, own in zip(ROWS, np.asarray(thetas), noise, strict=True)
    ]
    means, variances = (np.stack(one) for one in zip(*expected, strict=True))
    np.testing.assert_allclose(found.mean, means, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.variance, variances, rtol=1e-8)
    np.testing.assert_allclose(joined.variance, 1 / np.sum(1 / variances, 0), rtol=1e-8)
    np.testing.assert_allclose(
        joined.mean, np.sum(means / variances, 0) / np.sum(1 / variances, 0), rtol=1e-8, atol=1e-10
    )
    np.testing.assert_allclose(same.mean[2], means[2], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": -THETA}, "theta must be finite numbers in .* Clip them at 0"),
        ({"theta": THETA[1:]}, "theta must have shape"),
        ({"noise": 0.0}, "noise must be"),
        ({"points": np.zeros((2, 3))}, "points must have shape"),
    ],
)
def test_bad_predictions_are_refused(change, message):
    kernel, agents, _ = task()
    right = {"theta": THETA, "noise": NOISE, "points": POINTS}
    with pytest.raises((TypeError, ValueError), match=message):
        gp.predict(kernel, agents=agents, **(right | change))


@pytest.mark.parametrize("deviation", [0.05, 0.5])
def test_the_variance_of_noise_is_found(deviation):
    """Of a smooth function: within four standard errors, over 20 series side by side."""
    x = np.linspace(0, 1, 300)
    rng = np.random.default_rng(0)
    y = np.sin(9 * x) + x**2 + deviation * rng.normal(size=(20, 300))
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(jax.vmap(gp.noise_variance))(jnp.asarray(y)))
    np.testing.assert_allclose(found.mean(), deviation**2, rtol=4 * np.sqrt(2 / 6000))
    np.testing.assert_allclose(found, deviation**2, rtol=0.5)
    with pytest.raises(ValueError, match="at least 4"):
        gp.noise_variance(np.ones(3))


def numpy_kernels(params):
    """Both kernels from vectors of logarithms."""
    a, b = params["se"], params["sm"].reshape(3, 2)

    def exponential(left, right):
        return np.exp(2 * a[0] - 0.5 * ((left[:, None] - right) / np.exp(a[1])) ** 2)

    def spectral(left, right):
        t = (left[:, None] - right)[..., None]
        weights, means, deviations = np.exp(b)
        waves = np.cos(2 * np.pi * t * means)
        return np.exp(-2 * np.pi**2 * t**2 * deviations**2) * waves @ weights

    return {"se": exponential, "sm": spectral}


VECTORS = {
    "se": np.asarray([0.1, 0.9]),
    "sm": np.log(np.asarray([[0.5, 0.2], [0.08, 0.3], [0.01, 0.02]])).ravel(),
}
OURS = {
    "se": (
        gp.squared_exponential,
        lambda v: gp.SquaredExponential(v[..., 0], v[..., 1:]),
    ),
    "sm": (
        gp.spectral_mixture,
        lambda v: gp.SpectralMixture(v[..., :2], v[..., 2:4, None], v[..., 4:, None]),
    ),
}


@pytest.mark.slow
@pytest.mark.some(1)
@pytest.mark.parametrize("name", list(OURS))
def test_free_kernels_are_fitted_as_by_scipy(name):
    kernel, packed = OURS[name]
    starts = np.stack([VECTORS[name], VECTORS[name] + 0.3])

    def value(vector):
        own = numpy_kernels({**VECTORS, name: vector})[name]
        C = own(X, X) + NOISE * np.eye(len(X))
        return Y @ np.linalg.solve(C, Y) + np.linalg.slogdet(C)[1]

    with jax.enable_x64(True):
        params = packed(jnp.asarray(VECTORS[name]))
        found = gp.posterior(kernel, params, X[:, None], Y, NOISE, POINTS[:, None])
        fitted = gp.maximum_likelihood(
            kernel, packed(jnp.asarray(starts)), X[:, None], Y, NOISE, steps=60
        )
    mean, variance = conditional(numpy_kernels(VECTORS)[name], X, Y, NOISE, POINTS)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-8)
    best = [minimize(value, start, method="L-BFGS-B").fun for start in starts]
    np.testing.assert_allclose(fitted.values, best, rtol=1e-4)
    np.testing.assert_allclose(fitted.value, min(best), rtol=1e-4)
    packed_back = np.concatenate([np.asarray(leaf).ravel() for leaf in fitted.params])
    np.testing.assert_allclose(value(packed_back), fitted.value, rtol=1e-8)
