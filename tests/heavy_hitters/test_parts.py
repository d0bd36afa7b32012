"""Scores, rules, words, and the baselines GTF and TrieHH."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crowds import BITS, KEY, LEVELS, SIZES, K, crowd, run

import dflax as dx
from dflax import heavy_hitters as hh
from dflax.heavy_hitters.candidates import Candidates, children, find
from dflax.heavy_hitters.words import shifted_left, shifted_right
from dflax.privacy import local_privacy as lp


def found(*numbers, counts=None, k=None):
    k = len(numbers) if k is None else k
    items = np.zeros((k, 1), np.uint32)
    items[: len(numbers), 0] = numbers
    counts = np.zeros(k) if counts is None else counts
    return hh.Found(jnp.asarray(items), jnp.asarray(counts, jnp.float32), jnp.int32(len(numbers)))


def test_scores_by_hand():
    truth = found(5, 6, 7)
    assert hh.ncr(found(5, 7), truth) == pytest.approx(4 / 6)
    assert hh.f1(found(5, 7, 9), truth) == pytest.approx(2 / 3)
    assert hh.f1(found(5, 7), truth) == pytest.approx(4 / 5)
    # What lies beyond the number is nothing.
    assert hh.f1(found(5, 7, k=3), found(0, 5, 7)) == pytest.approx(4 / 5)
    assert hh.f1(found(k=3), truth) == 0
    assert hh.ncr(truth, truth) == 1
    error = hh.frequency_error(found(5, 9, counts=[11.0, 3.0]), found(5, 6, counts=[8.0, 2.0]))
    assert error == 3


def test_the_truth_is_counted_and_ties_are_broken():
    items = hh.as_words(np.array([9, 4, 4, 7, 7, 1, 9, 9]), 4)
    truth = jax.jit(hh.most_frequent, static_argnums=1)(items, 3)
    np.testing.assert_array_equal(truth.items[:, 0], [9, 4, 7])
    np.testing.assert_array_equal(truth.counts, [3, 2, 2])
    few = hh.most_frequent(items, 6)
    assert few.number == 4
    np.testing.assert_array_equal(few.counts, [3, 2, 2, 1, 0, 0])


def test_words_shift_as_numbers_do():
    rng = np.random.default_rng(0)
    for bits in (7, 32, 33, 48, 64):
        numbers = rng.integers(0, 1 << bits, 50, dtype=np.uint64)
        words = jnp.asarray(hh.as_words(numbers, bits))
        for by in (0, 1, bits // 2, min(31, bits - 1), min(32, bits - 1), bits - 1):
            shifted = np.asarray(jax.jit(shifted_right)(words, by))
            np.testing.assert_array_equal(hh.as_numbers(shifted), numbers >> np.uint64(by))
        small = numbers >> np.uint64(5)
        left = np.asarray(shifted_left(jnp.asarray(hh.as_words(small, bits)), jnp.int32(5)))
        np.testing.assert_array_equal(hh.as_numbers(left), small << np.uint64(5))
        back = np.asarray(shifted_left(words, jnp.int32(0)))
        np.testing.assert_array_equal(back, words)


@pytest.mark.slow
def test_candidates_are_found_or_not():
    numbers = np.sort(np.random.default_rng(0).choice(1 << 40, 9, replace=False).astype(np.uint64))
    words = jnp.asarray(np.pad(hh.as_words(numbers, 40), [(0, 3), (0, 0)]))
    some = Candidates(words, jnp.int32(9))
    asked = np.concatenate([numbers, numbers + np.uint64(1), [np.uint64(0)]])
    places = find(some, jnp.asarray(hh.as_words(asked, 41)))
    np.testing.assert_array_equal(places, [*range(9), *[-1] * 10])
    np.testing.assert_array_equal(find(some._replace(size=jnp.int32(0)), words), -1)


@pytest.mark.slow
def test_children_of_narrow_levels():
    parents = Candidates(jnp.array([[2], [5], [0]], jnp.uint32), jnp.int32(2))
    below = children(parents, jnp.int32(1), 3, 10)
    assert below.size == 4
    np.testing.assert_array_equal(below.words[:4, 0], [4, 5, 10, 11])


def test_the_adaptive_rule():
    """k = 2, c = 1: those above max(f_(2) - s, s), at least 2 and at most 4."""
    rule = hh.adaptive(2)
    number_of = jax.jit(rule.number)

    def number(values, deviation):
        value = np.array([*values, *[9.0] * (6 - len(values))], np.float32)
        return int(number_of(value, np.full(6, deviation, np.float32), value < 9))

    assert number([0.5, 0.3, 0.25, 0.1, 0.0], 0.1) == 3
    assert number([0.5, 0.3, 0.25, 0.1, 0.0], 0.01) == 2
    assert number([0.5, 0.3, 0.25, 0.24, 0.23], 0.1) == 4
    # Nothing that cannot be told from nothing, but no fewer than 2.
    assert number([0.1, 0.1, 0.1, 0.1], 0.2) == 2
    # The smallest of fewer than k.
    assert number([0.5], 0.1) == 2
    assert hh.adaptive(10).most == 20
    assert hh.fixed(7).most == 7


def known(values, deviation, there):
    values = np.array(values, np.float32)
    return hh.Known(values, np.full(len(values), deviation, np.float32), np.array(there))


def test_the_prior_rule():
    valid, nobody = jnp.ones(5, bool), known([0.0] * 5, np.inf, [False] * 5)
    told = known([0.5, 0.4, 0.3, 0.1, 0.0], 0.1, [True] * 5)
    keeps = jax.jit(hh.prior(1.0).keeps, static_argnums=3)
    # The second largest is 0.4: 0.3 + 0.1 is not below it but for rounding, 0.2 is.
    assert keeps(told, nobody, valid, 2).tolist()[:2] == [True, True]
    assert keeps(told, nobody, valid, 2).tolist()[3:] == [False, False]
    # Unknown ones stay; fewer than k are filled up by the unknown, then by size.
    some = known([0.5, 0.4, 0.3, 0.1, 0.0], 0.1, [True, True, True, False, False])
    assert keeps(some, nobody, valid, 1).tolist() == [True, True, False, True, True]
    below = known([-0.5, -0.4, -0.6, -0.3, 0.9], 0.1, [True, True, True, True, False])
    assert keeps(below, nobody, valid, 3).tolist() == [False, True, False, True, True]
    assert keeps(told, nobody, valid & (jnp.arange(5) < 3), 4).tolist() == [True] * 3 + [False] * 2


def test_own_reports_can_save_what_the_predecessor_rules_out():
    valid = jnp.ones(4, bool)
    told = known([0.5, 0.4, 0.1, 0.1], 0.05, [True] * 4)
    own = known([0.5, 0.4, 0.9, 0.1], 0.05, [True] * 4)
    assert hh.prior(1.0).keeps(told, own, valid, 2).tolist() == [True, True, False, False]
    kept = hh.validated(1.0).keeps(told, own, valid, 2).tolist()
    assert kept == [True, False, True, False] or kept == [True, True, True, False]
    # Who has no reports of its own believes the predecessor.
    nobody = known([0.0] * 4, np.inf, [True] * 4)
    assert hh.validated(1.0).keeps(told, nobody, valid, 2).tolist() == [True, True, False, False]


def unlike_parties():
    """Two parties of unlike sizes, each with a favourite and a second of its own."""
    sizes, items = (1000, 100), []
    for size, (one, other) in zip(sizes, ((3, 9), (200, 201)), strict=True):
        items += [one] * (size * 6 // 10) + [other] * (size * 4 // 10)
    words = jnp.asarray(hh.as_words(np.array(items), 8))
    return hh.grouped(KEY, words, sizes, 4, growing=True), sizes


@pytest.mark.slow
def test_gtf_finds_without_noise_and_weighs_parties_alike():
    """The small party's favourite beats the large one's second."""
    source, sizes = unlike_parties()
    state, _ = run(hh.gtf(100.0, bits=8, levels=4, k=2), source, sizes)
    np.testing.assert_array_equal(np.sort(state.server.items[:, 0]), [3, 200])
    np.testing.assert_allclose(state.server.counts, 0.6, atol=0.1)


@pytest.mark.slow
def test_fedpem_weighs_parties_by_their_users():
    source, sizes = unlike_parties()
    state, _ = run(hh.fedpem(lp.k_rr(100.0), bits=8, levels=4, k=2), source, sizes)
    np.testing.assert_array_equal(np.sort(state.server.items[:, 0]), [3, 9])


def test_formulas_of_triehh():
    assert hh.triehh_threshold(2.3e-12) == 15
    assert hh.triehh_threshold(0.5) == 5
    assert hh.triehh_batch(1.0, users=10**6, levels=10, threshold=15) == 6344
    with pytest.raises(ValueError, match="users"):
        hh.triehh_batch(1.0, users=10, levels=10, threshold=15)


def rolled(items, bits, levels, k, threshold, batch, key=KEY):
    algorithm = hh.triehh(bits=bits, levels=levels, k=k, threshold=threshold)
    users = items.shape[0]
    source = dx.Population(users, participation=dx.participation.uniform(batch))
    state = algorithm.init(key, items)
    return jax.jit(lambda s, src: dx.rollout(algorithm, s, src, key, levels))(state, source)


def test_triehh_with_everyone_voting_keeps_all_above_the_threshold():
    numbers = crowd()
    items = jnp.asarray(hh.as_words(numbers, BITS))
    state, metrics = rolled(items, BITS, LEVELS, 50, 20, len(numbers))
    trie, found = state.server
    kinds, counts = np.unique(numbers, return_counts=True)
    kept = counts >= 20
    np.testing.assert_array_equal(trie.words[: trie.size, 0], kinds[kept])
    order = np.lexsort((kinds[kept], -counts[kept]))
    np.testing.assert_array_equal(found.items[: kept.sum(), 0], kinds[kept][order])
    np.testing.assert_array_equal(found.counts[: kept.sum()], counts[kept][order])
    assert found.number == kept.sum() == metrics["prefixes"][-1]
    # Those who vote in the last round are those whose prefix is in the trie of the round before.
    _, votes = np.unique(numbers >> np.uint64(2), return_counts=True)
    assert metrics["votes"][-1] == votes[votes >= 20].sum()


def test_triehh_stops_where_nothing_has_enough_votes():
    items = jnp.asarray(hh.as_words(np.arange(500, dtype=np.uint64), BITS))
    state, metrics = rolled(items, BITS, LEVELS, 5, 100, 400)
    assert metrics["prefixes"].tolist()[2:] == [0, 0, 0]
    assert metrics["votes"].tolist()[3:] == [0, 0]
    assert state.server[1].number == 0


def test_triehh_refuses():
    items = hh.as_words(crowd(), BITS)
    algorithm = hh.triehh(bits=48, levels=4, k=2, threshold=5)
    with pytest.raises(ValueError, match="params"):
        algorithm.init(KEY, items)
    algorithm = hh.triehh(bits=BITS, levels=4, k=2, threshold=5)
    state = algorithm.init(KEY, items)
    with pytest.raises(ValueError, match="source"):
        algorithm.step(state, dx.Population(7).draw(KEY, 0))


def test_no_party_may_be_empty():
    algorithm = hh.fedpem(lp.k_rr(1.0), bits=BITS, levels=LEVELS, k=K)
    for parties in ([300, 0], [], [[3]], [300, -1]):
        with pytest.raises((TypeError, ValueError), match="params"):
            algorithm.init(KEY, parties)
    assert len(SIZES) == 3
