import jax.numpy as jnp
import numpy as np
import pytest

from dflax.data import resample

SEED = jnp.array([123, 456], jnp.uint32)


def test_class_laws_draw_by_their_laws():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 200)
    labels[:4] = np.arange(4)
    laws = np.array([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 0.0]])
    owned = resample(labels, laws)
    draws = np.asarray(owned.minibatches(SEED, jnp.arange(3), jnp.int32(0), 10, 2_000))
    assert draws.shape == (3, 10, 2_000)
    assert owned.clients == 3
    for client in range(3):
        found = np.bincount(labels[draws[client].ravel()], minlength=4) / 20_000
        # Five standard deviations of a frequency over 20,000 draws are at most 0.018.
        np.testing.assert_allclose(found, laws[client], atol=0.018)
        np.testing.assert_array_equal(found[laws[client] == 0], 0.0)
    members = np.flatnonzero(labels == 2)
    counts = np.bincount(draws[2].ravel(), minlength=200)[members]
    expected = 20_000 / len(members)
    degrees = len(members) - 1
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 6 * np.sqrt(2 * degrees)


def test_class_laws_differ_by_round_and_client():
    owned = resample(np.arange(100) % 2, np.full((2, 2), 0.5))
    first = np.asarray(owned.minibatches(SEED, jnp.arange(2), jnp.int32(0), 1, 200))
    later = np.asarray(owned.minibatches(SEED, jnp.arange(2), jnp.int32(200), 1, 200))
    assert np.mean(first[0] == first[1]) < 0.1
    assert np.mean(first == later) < 0.1


@pytest.mark.parametrize(
    ("labels", "laws", "message"),
    [
        ([0, 1], [0.5, 0.5], r"\[clients, classes\]"),
        ([0, 1], [[1.5, -0.5]], "laws"),
        ([0, 1], [[0.5, 0.4]], "sum to 1"),
        ([0, 2], [[0.5, 0.5]], r"\[0, 2\)"),
        ([0, 0], [[0.5, 0.5]], "without examples"),
    ],
)
def test_resample_refuses(labels, laws, message):
    with pytest.raises(ValueError, match=message):
        resample(np.array(labels), np.array(laws))


@pytest.mark.parametrize(
    ("labels", "laws", "message"),
    [
        (
            np.arange(3),
            np.ones((0, 3)),
            r"laws must be .*, classes >= 1, got shape \(0, 3\)",
        ),
        (
            np.zeros(0, int),
            np.ones((2, 1)),
            r"labels must be integers of shape \[N\] with N >= 1, got shape \(0,\)",
        ),
    ],
)
def test_resample_refuses_what_is_empty(labels, laws, message):
    with pytest.raises(ValueError, match=message):
        resample(labels, laws)
