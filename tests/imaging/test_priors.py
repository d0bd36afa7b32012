"""Priors against brute force, and the denoiser that is shipped on scenes that it has not seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from imaging_tasks import KEY, random_complex
from scipy.optimize import minimize

from dflax import imaging
from dflax.imaging.priors import variation_prox
from experiments.tasks.scenes import magnitudes, scenes


def variation(m):
    """Isotropic total variation with forward differences, smoothed by nothing, in NumPy."""
    apart = [np.diff(m, axis=axis, append=m.take([-1], axis)) for axis in range(3)]
    return np.sqrt(np.sum(np.square(apart), 0)).sum()


def test_variation_is_minimised():
    m = np.random.default_rng(1).random((3, 2, 3))
    alpha = 0.15

    def objective(v, smooth=0.0):
        apart = [np.diff(v, axis=a, append=v.take([-1], a)) for a in range(3)]
        size = np.sqrt(np.sum(np.square(apart), 0) + smooth)
        return alpha * size.sum() + np.square(v - m).sum() / 2

    ours = np.asarray(variation_prox(jnp.asarray(m, jnp.float32), jnp.float32(alpha), 400))
    x = m.ravel()
    # A smoothed problem, ever less so.
    for smooth in (1e-2, 1e-4, 1e-6, 1e-8):
        x = minimize(lambda v, s=smooth: objective(v.reshape(m.shape), s), x, method="BFGS").x
    assert objective(ours) <= objective(x.reshape(m.shape)) + 1e-5
    np.testing.assert_allclose(ours, x.reshape(m.shape), atol=5e-3)
    assert ours.min() >= 0


def test_small_variation_is_shrunk_afterwards():
    z = random_complex(KEY, (3, 4, 3))
    prior = imaging.small_variation(0.5, steps=30)
    found = jax.jit(prior.prox)(prior.weights, z, 0.2)
    smooth = jax.jit(variation_prox, static_argnums=2)(jnp.abs(z), jnp.float32(0.2), 30)
    np.testing.assert_allclose(jnp.abs(found), jnp.maximum(smooth - 0.1, 0), atol=1e-5)


def test_zero_phases_are_real_and_free_phases_stay():
    z = random_complex(KEY, (2, 3, 2))
    free = imaging.sparse()
    kept = free.prox(free.weights, z, 0.1)
    np.testing.assert_allclose(
        jnp.angle(kept)[jnp.abs(kept) > 0], jnp.angle(z)[jnp.abs(kept) > 0], rtol=1e-5
    )
    np.testing.assert_allclose(jnp.abs(kept), jnp.maximum(jnp.abs(z) - 0.1, 0), atol=1e-6)
    real = imaging.zero_phase(lambda weights, m, alpha: m - alpha)
    np.testing.assert_allclose(
        real.prox((), z, 0.1), jnp.maximum(jnp.maximum(z.real, 0) - 0.1, 0), atol=1e-6
    )


def test_a_prior_without_a_scale_of_its_own():
    def prox(weights, m, alpha):
        return jnp.where(m > 0.5, m, 0)

    prior = imaging.of_magnitude(prox, scale_invariant=True)
    z = random_complex(KEY, (2, 3, 2))
    np.testing.assert_allclose(
        prior.prox((), 40 * z, 0.1), 40 * prior.prox((), z, 0.1), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(prior.prox((), 0 * z, 0.1), 0)


@functools.cache
def denoised():
    """Errors of noisy scenes and of what the shipped denoiser makes of them, at two noise levels."""
    clean = magnitudes(jax.random.key(991), 4, (13, 13, 17))
    sigma = jnp.array([0.05, 0.05, 0.15, 0.15])
    real, imaginary = jax.random.normal(jax.random.key(992), (2, *clean.shape))
    level = sigma[:, None, None, None]
    noisy = jnp.hypot(clean + level * real, level * imaginary)
    found = jax.jit(imaging.noise_removed)(imaging.learned().weights, noisy, sigma)
    errors = [jnp.mean(jnp.square(m - clean), (1, 2, 3)) for m in (noisy, found)]
    return np.asarray(errors), np.asarray(sigma)


def test_the_shipped_denoiser_removes_noise():
    (before, after), _ = denoised()
    assert np.all(after < before / 20)


def test_scenes_are_a_few_bright_voxels_of_any_phase():
    found = np.asarray(scenes(jax.random.key(5), 64, (13, 13, 17)))
    m = np.abs(found)
    np.testing.assert_allclose(m.max((1, 2, 3)), 1, rtol=1e-5)
    share = (m > 0.05).mean((1, 2, 3))
    assert share.min() > 0
    assert share.max() < 0.25
    phases = np.angle(found[m > 0.05])
    assert abs(np.exp(1j * phases).mean()) < 0.05
    with pytest.raises(ValueError, match="sparsity"):
        imaging.small_variation(-1.0)
