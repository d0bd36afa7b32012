import jax
import numpy as np
import pytest

import dflax as dx

KEY = jax.random.key(0)


@pytest.mark.parametrize("separation", [0.1, 0.6])
def test_points_lie_on_the_sphere_and_keep_their_distance(separation):
    task = dx.data.separated(KEY, 5, 20, 8, separation)
    points = np.asarray(task.data.train.inputs, np.float64)
    assert points.shape == (100, 8)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(points[:, -1], 0.5)
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + 9 * np.eye(100)
    assert gaps.min() >= separation
    np.testing.assert_allclose(task.separation, gaps.min())
    assert set(np.asarray(task.data.labels)) == {-1.0, 1.0}
    np.testing.assert_array_equal(task.partition.sizes, 20)


def test_the_key_alone_decides():
    first, again = (dx.data.separated(KEY, 2, 3, 4, 0.2) for _ in range(2))
    other = dx.data.separated(jax.random.key(1), 2, 3, 4, 0.2)
    np.testing.assert_array_equal(first.data.train.inputs, again.data.train.inputs)
    assert np.any(first.data.train.inputs != other.data.train.inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 8, 0.1), "clients must be an integer >= 1"),
        ((2, 5, 2, 0.1), "dimension must be an integer >= 3"),
        ((2, 5, 8, 0.0), "separation must be a finite number"),
        ((2, 5, 8, 1.8), "separation must be a finite number"),
        ((5, 20, 3, 1.0), "separation must leave room for 100 points"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        dx.data.separated(KEY, *arguments)
