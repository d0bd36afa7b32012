"""Forward models against their definition, against each other, and against their adjoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from imaging_tasks import GEOMETRY, KEY, matrix, operator, random_complex

from dflax import imaging

FREQUENT = imaging.low_memory(GEOMETRY, at_once=2)
MODELS = {"dense": operator, "low memory": lambda: FREQUENT}


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_its_definition(model):
    A, op = matrix(), MODELS[model]()
    x = random_complex(KEY, op.voxels)
    y = random_complex(jax.random.fold_in(KEY, 1), op.measured)

    @jax.jit
    def all_of(arrays, x, y):
        return op.forward(arrays, x), op.adjoint(arrays, y), op.gram(arrays)

    forward, adjoint, gram = all_of(op.arrays, x, y)
    close = {"rtol": 0, "atol": 2e-4 * np.abs(A @ np.ravel(x)).max()}
    np.testing.assert_allclose(np.ravel(forward), A @ np.ravel(x), **close)
    np.testing.assert_allclose(np.ravel(adjoint), A.conj().T @ np.ravel(y), **close)
    np.testing.assert_allclose(gram, A @ A.conj().T, rtol=0, atol=1e-4 * np.abs(gram).max())
    left, right = np.vdot(forward, y), np.vdot(x, adjoint)
    assert abs(left - right) < 1e-5 * np.linalg.norm(forward) * np.linalg.norm(y)


@pytest.mark.parametrize("model", MODELS)
def test_receivers_have_the_rows_of_their_own(model):
    op = MODELS[model]()
    x = random_complex(KEY, op.voxels)

    @jax.jit
    def both(arrays, x):
        each = jax.vmap(op.forward, (0, None))(op.of_receivers(arrays), x)
        return each, op.forward(arrays, x)

    each, whole = both(op.arrays, x)
    assert each.shape == (4, 3, 2, 1)
    np.testing.assert_allclose(
        jnp.moveaxis(each[..., 0], 0, -1), whole, rtol=0, atol=1e-5 * np.abs(whole).max()
    )


def test_a_voxel_on_the_axis_of_one_antenna():
    f, R = 5e9, 0.4
    alone = imaging.geometry([[0, 0, 0.0]], [[0, 0, 0.0]], [f], ([0.0], [0.0], [R]))
    op = imaging.dense(alone)
    k = 2 * np.pi * f / 299792458.0
    expected = np.exp(-2j * k * R) / (4 * np.pi * R * R)
    np.testing.assert_allclose(op.arrays.ravel(), [expected], rtol=1e-4)
    y = jnp.ones((1, 1, 1, 1), jnp.complex64)
    projected = imaging.back_projection(alone, y).ravel()
    np.testing.assert_allclose(projected, [np.exp(2j * k * R)], rtol=1e-4)
    # Both slopes are 1: 4 (R^2 (i k)^2 + 2 R i k + 1).
    weight = 4 * (1 + 1j * k * R) ** 2
    migrated = imaging.kirchhoff(alone, y).ravel()
    np.testing.assert_allclose(migrated, [weight * np.exp(2j * k * R)], rtol=1e-4)


def test_back_projection_is_the_adjoint_without_amplitudes():
    A = matrix()
    y = random_complex(KEY, (2, *GEOMETRY.measured))
    expected = np.asarray(y).reshape(2, -1) @ (A / np.abs(A)).conj()
    found = imaging.back_projection(GEOMETRY, y).reshape(2, -1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_noise_has_its_power_and_its_radius():
    clean = random_complex(KEY, (20000,)) * 3
    noisy, radius = imaging.noisy(jax.random.fold_in(KEY, 2), clean, 10.0)
    noise = np.asarray(noisy - clean)
    power = np.mean(np.abs(clean) ** 2) / 10
    assert np.mean(np.abs(noise) ** 2) == pytest.approx(power, rel=0.03)
    assert np.mean(noise.real**2) == pytest.approx(power / 2, rel=0.03)
    assert float(radius) == pytest.approx(np.sqrt(20000 * power), rel=1e-4)


def test_the_papers_system():
    paper = imaging.crossed_diagonals()
    assert paper.measured == (20, 12, 13)
    assert paper.voxels == (25, 25, 49)
    np.testing.assert_allclose(
        paper.receivers[:: len(paper.receivers) - 1], [[-0.15, -0.15, 0], [0.15, 0.15, 0]]
    )
    np.testing.assert_allclose(
        paper.transmitters[:: len(paper.transmitters) - 1], [[-0.15, 0.15, 0], [0.15, -0.15, 0]]
    )
    np.testing.assert_allclose([paper.frequencies[0], paper.frequencies[-1]], [4e9, 16e9])
    np.testing.assert_allclose([paper.axes[2][0], paper.axes[2][-1]], [0.35, 0.65])


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"receivers": np.zeros((0, 3))}, "receivers must be .* Without it nothing is measured"),
        ({"frequencies": []}, "frequencies must be .* Without it nothing is measured"),
        ({"frequencies": [0.0]}, "frequencies must be"),
        ({"axes": ([0.0], [0.0])}, "axes must be"),
        ({"axes": ([0.0], [0.0], [0.0])}, "transmitters must lie on no voxel"),
    ],
)
def test_what_measures_nothing_is_refused(wrong, match):
    right = {
        "transmitters": np.zeros((1, 3)),
        "receivers": np.ones((1, 3)),
        "frequencies": [1e9],
        "axes": ([0.0], [0.0], [1.5]),
    }
    imaging.geometry(**right)
    with pytest.raises((TypeError, ValueError), match=match):
        imaging.geometry(**{**right, **wrong})
