"""Proximal maps against brute-force minimisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from dflax import local

RNG = np.random.default_rng(4)


def least(objective, start):
    """A minimiser found by a search without gradients, from several starts."""
    options = {"xatol": 1e-9, "fatol": 1e-14, "maxiter": 20000, "maxfev": 20000}
    starts = [start, 0 * start + 1e-3, -start, RNG.normal(size=start.shape)]
    found = [minimize(objective, s, method="Nelder-Mead", options=options) for s in starts]
    return min(found, key=lambda result: result.fun).x


@pytest.mark.parametrize(
    ("regulariser", "prox"),
    [
        (lambda m, a: a * m, lambda m, a: jnp.maximum(m - a, 0)),
        (lambda m, a: a * (m - 1) ** 2 / 2, lambda m, a: (m + a) / (1 + a)),
        (
            lambda m, a: a * np.log1p(m),
            # The larger root of (m - |z|)(1 + m) + a = 0, or 0.
            lambda m, a: jnp.where(
                (1 + m) ** 2 > 4 * a,
                jnp.maximum((m - 1 + jnp.sqrt(jnp.maximum((1 + m) ** 2 - 4 * a, 0))) / 2, 0),
                0,
            ),
        ),
    ],
    ids=["l1", "quadratic", "log"],
)
@pytest.mark.parametrize("weight", [0.3, 1.2])
def test_the_prox_of_a_magnitude_is_the_nearest_complex_number(regulariser, prox, weight):
    for z in (1.3 - 0.4j, -2.1 + 0.7j, 0.2 + 0.1j):

        def objective(v, z=z):
            number = v[0] + 1j * v[1]
            return regulariser(abs(number), weight) + abs(number - z) ** 2 / 2

        ours = complex(local.on_magnitude(lambda m: prox(m, weight), jnp.array(z)))
        best = least(objective, np.array([z.real, z.imag]))
        value = objective(np.array([ours.real, ours.imag]))
        assert value <= objective(best) + 1e-6
        assert abs(ours - (best[0] + 1j * best[1])) < 2e-3


def test_magnitudes_by_hand():
    z = jnp.array([3 + 4j, 0.3j, 0])
    found = local.on_magnitude(lambda m: jnp.maximum(m - jnp.array([1, 0.5, 0.5]), 0), z)
    np.testing.assert_allclose(found, [2.4 + 3.2j, 0, 0], rtol=1e-6)
    # At 0 the phase is 0, and what a denoiser returns below 0 is 0.
    np.testing.assert_allclose(local.on_magnitude(lambda m: m + 2, z)[2], 2)
    np.testing.assert_array_equal(local.on_magnitude(lambda m: m - 9, z), 0)


def test_real_proxes_are_nearest_points():
    x = np.array([1.5, -0.2, 0.7])
    pairs = [
        (local.soft_threshold(x, 0.4), lambda v: 0.4 * np.abs(v).sum()),
        (local.group_threshold(x, 0.9), lambda v: 0.9 * np.linalg.norm(v)),
    ]
    for ours, regulariser in pairs:
        best = least(lambda v, r=regulariser: r(v) + ((v - x) ** 2).sum() / 2, x)
        np.testing.assert_allclose(ours, best, atol=1e-4)
    np.testing.assert_array_equal(local.group_threshold(np.array([0.3, 0.4]), 0.6), 0)
    np.testing.assert_allclose(local.onto_box(x, -0.1, 1.0), [1.0, -0.1, 0.7])
    on = np.asarray(local.onto_simplex(x, 2.0))
    # Nearest: what is active has lost the same, the rest would be negative.
    np.testing.assert_allclose(on, [1.4, 0, 0.6], atol=1e-6)


def test_the_ball_keeps_what_is_inside():
    center = jnp.array([1 + 1j, -2.0])
    inside = center + jnp.array([0.1j, 0.2])
    np.testing.assert_array_equal(local.onto_ball(inside, center, 0.3), inside)
    far = center + jnp.array([3j, 4.0])
    np.testing.assert_allclose(
        local.onto_ball(far, center, 0.5), center + jnp.array([0.3j, 0.4]), rtol=1e-6
    )
    np.testing.assert_array_equal(local.onto_ball(far, center, 0.0), center)
    slope = jax.grad(lambda r: jnp.abs(local.onto_ball(far, center, r)[1] - center[1]))(0.5)
    assert float(slope) == pytest.approx(0.8, rel=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="prox must keep the shape"):
        local.on_magnitude(lambda m: m[:1], jnp.ones(3))
    with pytest.raises(ValueError, match="high must be >= low"):
        local.onto_box(jnp.ones(3), 1.0, 0.0)
    with pytest.raises(ValueError, match="center must have x's shape"):
        local.onto_ball(jnp.ones(3), jnp.ones(2), 1.0)
    with pytest.raises(ValueError, match="weight must be"):
        local.soft_threshold(jnp.ones(3), -1.0)
