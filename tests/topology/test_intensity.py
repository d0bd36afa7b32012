import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import topology
from dflax.topology import intensity

ROUNDS = 100
U = (np.arange(ROUNDS) + 1) / ROUNDS


def values(r):
    return np.asarray(jax.vmap(r)(jnp.arange(ROUNDS)))


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("r", "expected"),
    [
        (intensity.constant(0.2), np.full(ROUNDS, 0.2)),
        (intensity.linear(1.0, 3.0, ROUNDS), 1 + 2 * U),
        (intensity.cosine(1.0, 3.0, ROUNDS), 3 - 2 * (1 + np.cos(np.pi * U)) / 2),
        (intensity.decaying(1.0, 3.0, ROUNDS), np.where(U < 1, 3 - 2 * np.exp(-10 * U), 3.0)),
        (
            intensity.late_growth(1.0, 3.0, ROUNDS),
            np.where(U < 1, 1 + 15 * np.log10(1 + 9 * U**80), 3.0),
        ),
        (intensity.switched(0.2, 15.0, ROUNDS, 0.95), np.where(U >= 0.95, 15.0, 0.2)),
        (intensity.switched(0.2, 15.0, ROUNDS, 0.0), np.full(ROUNDS, 15.0)),
        (intensity.switched(0.2, 15.0, ROUNDS, 1.5), np.where(U == 1, 15.0, 0.2)),
        (
            intensity.window(0.2, 15.0, ROUNDS, 0.1, 0.05),
            np.where((np.arange(ROUNDS) >= 9) & (np.arange(ROUNDS) < 14), 15.0, 0.2),
        ),
    ],
)
def test_each_law_is_the_published_one(r, expected):
    np.testing.assert_allclose(values(r), expected, rtol=1e-4)


def test_the_middle_of_a_cosine_and_the_limits_of_late_growth():
    np.testing.assert_allclose(values(intensity.cosine(1.0, 3.0, ROUNDS))[49], 2.0, atol=1e-5)
    np.testing.assert_allclose(intensity.late_growth(1.0, 3.0, 10**6)(0), 1.0)
    # Just before the end nearly 16, whatever r the last round has.
    np.testing.assert_allclose(intensity.late_growth(1.0, 3.0, 10**6)(10**6 - 2), 16.0, atol=0.01)


def test_points_can_be_swept():
    def total(point):
        return values_of(intensity.switched(0.0, 1.0, ROUNDS, point)).sum()

    def values_of(r):
        return jax.vmap(r)(jnp.arange(ROUNDS))

    swept = jax.jit(jax.vmap(total))(jnp.asarray([0.5, 0.91]))
    np.testing.assert_array_equal(swept, [51, 10])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: intensity.constant(-1.0), "r must be"),
        (lambda: intensity.linear(-1.0, 1.0, 5), "start must be"),
        (lambda: intensity.cosine(1.0, float("nan"), 5), "end must be"),
        (lambda: intensity.decaying(1.0, 2.0, 0), "rounds must be an integer >= 1"),
        (lambda: intensity.late_growth(1.0, 2.0, 5, most=-1.0), "most must be"),
        (lambda: intensity.switched(1.0, 2.0, 5, -0.1), "point must be"),
        (lambda: intensity.window(1.0, 2.0, 5, 0.1, 0.0), "width must be"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_pairs_meet_with_a_probability_that_follows_the_round():
    schedule = topology.random_matching(10, lambda t: jnp.where(t < 5, 0.0, 2.0))
    for t, met in ((0, 0), (4, 0), (5, 10), (9, 10)):
        drawn = schedule.draw(None, jax.random.key(t), jnp.int32(t))
        assert int((drawn.weights > 0).sum()) == met
