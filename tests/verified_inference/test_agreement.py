"""Distances between answers, consensus, and faults, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import verified_inference as vi
from dflax.verified_inference.agreement import median_of
from dflax.verified_inference.consensus import quorum_of

KEY = jax.random.key(1)
RNG = np.random.default_rng(1)


def test_distances_are_those_on_paper():
    answers = RNG.normal(size=(4, 2, 3)).astype(np.float32)
    found = vi.relative_difference().distances(KEY, answers)
    divergence = vi.jensen_shannon().distances(KEY, answers)
    same = vi.labels().distances(KEY, answers)
    y = answers.astype(np.float64)
    p = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    for i in range(4):
        for j in range(4):
            gap = np.abs(y[i] - y[j]).max() / max(np.abs(y[i]).max(), np.abs(y[j]).max())
            np.testing.assert_allclose(found[i, j], gap, rtol=1e-5)
            m = (p[i] + p[j]) / 2
            both = (p[i] * np.log(p[i] / m) + p[j] * np.log(p[j] / m)).sum(-1) / 2
            np.testing.assert_allclose(divergence[i, j], both.max(), rtol=1e-3, atol=1e-6)
            assert same[i, j] == np.any(y[i].argmax(-1) != y[j].argmax(-1))
    assert not np.any(np.asarray(found)[:, [0]] <= np.nan)


def test_opposite_distributions_are_the_logarithm_of_two_apart():
    sure = jnp.array([[[60.0, -60.0]], [[-60.0, 60.0]]])
    np.testing.assert_allclose(vi.jensen_shannon().distances(KEY, sure)[0, 1], np.log(2), rtol=1e-5)


@functools.cache
def comparison(statistic):
    measure = vi.two_sample_test(statistic, samples=24, permutations=99)

    @jax.jit
    def distances(key, scores):
        keys = jax.random.split(key, len(scores))
        answers = jax.vmap(measure.reveal)(keys, scores)
        return answers, measure.distances(key, answers), measure.combine(answers, jnp.ones(2, bool))

    return jax.jit(jax.vmap(distances, in_axes=(0, None)))


@pytest.mark.parametrize("statistic", ["energy", pytest.param("mmd", marks=pytest.mark.slow)])
def test_two_sample_tests_keep_their_level_and_see_other_distributions(statistic):
    keys = jax.random.split(KEY, 300)
    equal = jnp.log(jnp.array([[[0.5, 0.3, 0.2]]] * 2))
    answers, found, shares = comparison(statistic)(keys, equal)
    refused = float(np.mean(np.asarray(found)[:, 0, 1] > 0.95))
    assert refused < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 300)
    np.testing.assert_allclose(np.asarray(shares).mean(0), [[0.5, 0.3, 0.2]], atol=0.02)
    other = equal.at[1].set(jnp.log(jnp.array([[0.05, 0.05, 0.9]])))
    _, found, _ = comparison(statistic)(keys, other)
    assert np.mean(np.asarray(found)[:, 0, 1] > 0.95) > 0.95
    # The first permutation's statistic against the formula on one-hot samples.
    x = np.asarray(answers[0], np.float64).reshape(2, 24, -1)
    gaps = np.linalg.norm(x[:, None, :, None] - x[None, :, None], axis=-1)
    means = gaps.mean((2, 3)) if statistic == "energy" else np.exp(-(gaps**2)).mean((2, 3))
    value = 2 * means[0, 1] - means[0, 0] - means[1, 1]
    assert (value if statistic == "energy" else -value) >= -1e-9


@pytest.mark.slow
def test_a_subset_is_looked_at_alone():
    answers = np.zeros((2, 1, 10), np.float32)
    answers[1, 0, 3] = 1.0
    measure = vi.on_subset(vi.relative_difference(), 4)
    found = jax.vmap(lambda key: measure.distances(key, answers)[0, 1])(jax.random.split(KEY, 500))
    assert abs(np.mean(np.asarray(found) > 0) - 0.4) < 4 * np.sqrt(0.24 / 500)


def test_the_median_is_that_of_members_alone():
    answers = RNG.normal(size=(6, 3)).astype(np.float32)
    for members in ([1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0]):
        mask = np.array(members, bool)
        np.testing.assert_allclose(median_of(answers, mask), np.median(answers[mask], 0), rtol=1e-6)
    assert np.all(np.isnan(median_of(answers, np.zeros(6, bool))))


def test_consensus_is_the_largest_set_around_a_member_who_is_there():
    near = np.eye(5, dtype=bool)
    near[0, 1] = near[1, 0] = True
    near[2, 3] = near[3, 2] = near[2, 4] = near[4, 2] = True
    found = vi.consensus(near, np.ones(5, bool), 3)
    assert (int(found.leader), bool(found.accepted)) == (2, True)
    assert found.members.tolist() == [False, False, True, True, True]
    missing = np.array([True, True, False, True, True])
    found = vi.consensus(near, missing, 3)
    assert (int(found.leader), bool(found.accepted)) == (0, False)
    weights = np.array([5.0, 1.0, 1.0, 1.0, 1.0])
    found = vi.consensus(near, np.ones(5, bool), 6, weights=weights)
    assert (int(found.leader), bool(found.accepted)) == (0, True)
    assert not vi.consensus(near, np.zeros(5, bool), 1).accepted


@pytest.mark.slow
def test_a_median_of_a_consensus_is_near_the_right_output():
    """Fewer than half of the set are faulty and all are within tau: so is the median."""
    rng = np.random.default_rng(0)
    for _ in range(15):
        answers = np.ones((7, 1, 4), np.float32)
        answers[:3] += rng.uniform(-0.05, 0.05, (3, 1, 4)).astype(np.float32)
        near = np.asarray(vi.relative_difference().distances(KEY, answers)) <= 0.06
        found = vi.consensus(near, np.ones(7, bool), 5)
        assert near[int(found.leader)][np.asarray(found.members)].all()
        assert np.abs(np.asarray(median_of(answers, found.members)) - 1).max() <= 0.06


def test_quorums_of_shares_have_no_rounding():
    sizes = {3: 2, 6: 4, 7: 5, 9: 6, 13: 9, 1: 1}
    assert {k: int(quorum_of(k, np.float32(2 / 3))) for k in sizes} == sizes
    assert int(quorum_of(5, np.float32(0.6))) == 3


def test_committees_follow_their_weights_and_have_nobody_twice():
    weights = np.array([0.0, 1.0, 2.0, 5.0])
    draw = jax.jit(jax.vmap(lambda key: vi.committee(key, weights, 4)))
    members, drawn = draw(jax.random.split(KEY, 4000))
    assert np.all(np.sort(members, axis=1) == np.arange(4))
    assert np.all(members[:, 3] == 0)
    assert np.all(np.asarray(drawn) == [True, True, True, False])
    first = np.bincount(np.asarray(members[:, 0]), minlength=4) / 4000
    np.testing.assert_allclose(first, weights / 8, atol=0.035)


def test_faults_do_what_they_say():
    params = {"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
    rounded = vi.fewer_bits(3).alter(params)["w"]
    step = jnp.abs(params["w"]).max() / 3
    np.testing.assert_allclose(rounded / step, np.round(params["w"] / step), atol=1e-5)
    outputs = jnp.arange(4.0)[None]
    assert vi.label_flip(1).lie(KEY, outputs).tolist() == [[3.0, 0.0, 1.0, 2.0]]
    drawn = {int(vi.label_flip().lie(key, outputs).argmax()) for key in jax.random.split(KEY, 40)}
    assert drawn == {0, 1, 2}
    assert vi.colluding(vi.random_output()).colludes
    assert vi.copying().copies
    old = {"w": jnp.zeros((4, 3))}
    assert vi.other_weights(old).alter(params)["w"].sum() == 0
    with pytest.raises(ValueError, match="params of other_weights"):
        vi.other_weights({"w": jnp.zeros((4, 2))}).alter(params)
    padded = vi.zero_padded({"w": jnp.ones((2, 3))}, params)["w"]
    assert padded.tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2
    with pytest.raises(ValueError, match="shift must move"):
        vi.label_flip(4).lie(KEY, outputs)
