"""Who compares what, what verdicts add up to, and rules that choose an answer, against plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from dflax import inference
from dflax.inference.swarm.ledger import by_consensus, by_truth, vote_weights

KEY = jax.random.key(4)
N, K = 6, 9


def ballot(seed=0, absent=(), hard=True):
    rng = np.random.default_rng(seed)
    pairs = np.asarray(inference.sampled_pairs(jax.random.key(seed), N, K))
    present = ~np.isin(np.arange(N), absent)
    y = rng.integers(0, 2, (N, K)) if hard else rng.random((N, K))
    counted = present[:, None] & present[pairs].all(-1)
    weights = np.asarray(vote_weights(rng.random(N), present, 1.0))
    choices = rng.integers(0, 3, N).astype(np.int32)
    made = inference.Ballot(choices, present, pairs, y.astype(np.float32), counted, weights)
    return jax.tree.map(jnp.asarray, made)


@functools.cache
def rules():
    made = {
        "strength": inference.by_strength(iterations=200),
        "unweighted": inference.by_strength(weighted=False, iterations=200),
        "borda": inference.by_win_rate(),
        "elo": inference.by_elo(),
        "majority": inference.by_majority(),
        "reputation": inference.by_majority(weighted=True),
        "clustered": inference.clustered(inference.by_strength(iterations=200)),
    }
    return jax.jit(lambda one: {name: rule(one) for name, rule in made.items()})


def wins_of(given, weights):
    given, wins = jax.tree.map(np.asarray, given), np.zeros((N, N))
    for k, p in np.ndindex(N, K):
        i, j = given.pairs[k, p]
        if given.counted[k, p]:
            wins[i, j] += weights[k] * given.verdicts[k, p]
            wins[j, i] += weights[k] * (1 - given.verdicts[k, p])
    return wins


def test_pairs_leave_out_the_judge_and_are_uniform():
    drawn = np.asarray(jax.jit(lambda key: inference.sampled_pairs(key, 5, 6000))(KEY))
    judge = np.arange(5)[:, None]
    assert (drawn != judge[..., None]).all()
    assert (drawn[..., 0] != drawn[..., 1]).all()
    for k in range(5):
        counts = np.zeros((5, 5), int)
        np.add.at(counts, tuple(drawn[k].T), 1)
        seen = counts[counts > 0]
        assert len(seen) == 12
        assert np.abs(seen - 500).max() < 5 * np.sqrt(500)
    table = np.asarray(inference.all_pairs(5))
    assert table.shape == (5, 6, 2)
    assert all(len({tuple(p) for p in table[k]}) == 6 for k in range(5))
    assert (table[..., 0] < table[..., 1]).all()
    assert (table != judge[..., None]).all()


@pytest.mark.slow
@pytest.mark.parametrize("hard", [True, False])
def test_wins_are_those_of_a_loop_and_a_turned_pair_says_the_same(hard):
    given = ballot(1, absent=(2,), hard=hard)
    add = jax.jit(lambda p, y, w, c: inference.weighted_wins(p, y, w, counted=c))
    wins = add(given.pairs, given.verdicts, given.weights, given.counted)
    np.testing.assert_allclose(wins, wins_of(given, given.weights), rtol=1e-5, atol=1e-6)
    turned = add(given.pairs[..., ::-1], 1 - given.verdicts, given.weights, given.counted)
    np.testing.assert_allclose(turned, wins, atol=1e-5)
    assert wins[2].sum() == wins[:, 2].sum() == 0


@pytest.mark.slow
@pytest.mark.parametrize("absent", [(), (0, 3)])
def test_rules_are_those_of_plain_loops(absent):
    given = jax.tree.map(np.asarray, ballot(2, absent))
    found = rules()(given)
    there = np.flatnonzero(given.present)
    for name, weights in (("strength", given.weights), ("unweighted", np.ones(N))):
        wins = wins_of(given, weights)
        wanted = inference.bradley_terry(
            np.float32(wins[np.ix_(there, there)]), iterations=200, tolerance=None
        ).strength
        np.testing.assert_allclose(found[name].score[there], wanted, rtol=1e-4)
        np.testing.assert_allclose(found[name].confidence, max(wanted) / sum(wanted), rtol=1e-4)
    wins = wins_of(given, np.ones(N))
    games = wins.sum(1) + wins.sum(0)
    np.testing.assert_allclose(
        found["borda"].score[there], wins.sum(1)[there] / games[there], rtol=1e-5
    )
    rating = np.zeros(N)
    for p in range(K):
        for k in range(N):
            if given.counted[k, p]:
                i, j = given.pairs[k, p]
                expected = 1 / (1 + 10 ** ((rating[j] - rating[i]) / 400))
                rating[i] += 32 * (given.verdicts[k, p] - expected)
                rating[j] -= 32 * (given.verdicts[k, p] - expected)
    np.testing.assert_allclose(found["elo"].score[there], 10 ** (rating[there] / 400), rtol=1e-4)
    for ranked in found.values():
        assert given.present[ranked.winner]
        np.testing.assert_array_equal(np.asarray(ranked.score)[list(absent)], 0)


def voted(choices, weights=None, present=None):
    given = ballot(3)
    choices = np.asarray(choices, np.int32)
    weights = np.ones(N) if weights is None else np.asarray(weights)
    present = np.ones(N, bool) if present is None else np.asarray(present)
    given = given._replace(choices=choices, weights=np.float32(weights), present=present)
    found = rules()(given._replace(counted=given.counted & present[:, None]))
    return {name: int(choices[ranked.winner]) for name, ranked in found.items()}, found


def test_majorities():
    named, found = voted([2, 2, 1, 1, 0, 3])
    # A tie goes to the lowest option, and to the first node that holds it.
    assert named["majority"] == 1
    assert found["majority"].winner == 2
    np.testing.assert_allclose(found["majority"].confidence, 2 / 6)
    named, found = voted([2, 2, 1, 1, 0, 3], [0.4, 0.4, 0.1, 0.1, 4.0, 1.0])
    assert named["majority"] == 1
    assert named["reputation"] == 0
    np.testing.assert_allclose(found["reputation"].confidence, 4 / 6, rtol=1e-6)
    # A weighted tie is one though sums are rounded.
    named, _ = voted([2, 2, 2, 1, 1, 1], [0.1, 0.7, 0.2, 0.2, 0.1, 0.7])
    assert named["reputation"] == 1
    named, _ = voted([0, 0, 0, 2, 2, 1], present=[False, False, True, True, True, True])
    assert named["majority"] == 2


def test_identical_answers_are_merged():
    rank = jax.jit(inference.clustered(lambda b: _scored(b.weights)))
    given = ballot(5)._replace(choices=np.int32([0, 1, 1, 1, 2, 2]))
    found = rank(given._replace(weights=np.float32([5, 2, 3, 1, 4, 1])))
    # 5, 6, 5: the second cluster, and in it the best.
    assert found.winner == 2
    np.testing.assert_allclose(found.confidence, 6 / 16)
    np.testing.assert_array_equal(found.score, [5, 2, 3, 1, 4, 1])


def _scored(score):
    zero = jnp.int32(0)
    return inference.Ranked(score, zero, jnp.float32(0), zero, jnp.bool_(False))


def test_condorcets_jury():
    rng, draws, p = np.random.default_rng(6), 4000, 0.65
    choices = (rng.random((draws, N - 1)) > p).astype(np.int32)
    given = ballot(6)
    rank = inference.by_majority()
    present = np.arange(N) < N - 1

    @jax.jit
    @jax.vmap
    def jury(own):
        own = jnp.append(own, 0)
        return own[rank(given._replace(choices=own, present=present)).winner] == 0

    share, tail = np.mean(jury(choices)), binom.sf(2, 5, p)
    assert abs(share - tail) < 4 * np.sqrt(tail * (1 - tail) / draws)


def test_weights():
    there = np.array([True, True, False, True])
    weights = vote_weights(np.array([0.2, 0.4, 0.9, 0.6]), there, 2.0)
    np.testing.assert_allclose(weights, 3 * np.array([4, 16, 0, 36]) / 56, rtol=1e-5)
    np.testing.assert_allclose(vote_weights(np.array([0.2, 0.4, 0.9, 0.6]), there, 0.0), there)
    np.testing.assert_allclose(vote_weights(np.zeros(4), there, 1.0), there)


@pytest.mark.parametrize("hard", [True, False])
def test_signals_are_those_of_plain_loops(hard):
    given = ballot(7, absent=(1,), hard=hard)
    score = jnp.array([3, 0, 1, 2, 2, 0.5])
    correct = jnp.array([True, False, True, False, False, True])
    measured = jax.jit(lambda b: [by_consensus(b, score, graded) for graded in (True, False)])
    (own, winner), known = measured(given), jax.jit(by_truth)(given, correct)
    given, own, known = jax.tree.map(np.asarray, (given, own, known))
    np.testing.assert_allclose(own.answered[[0, 2, 3, 4, 5]], [1, 0.25, 0.625, 0.625, 0])
    np.testing.assert_array_equal(winner.answered, [1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(known.answered, correct)
    for k in range(N):
        right, true = [], []
        for p in range(K):
            if given.counted[k, p]:
                (i, j), y = given.pairs[k, p], given.verdicts[k, p]
                right.append(0.5 if score[i] == score[j] else y if score[i] > score[j] else 1 - y)
                if correct[i] != correct[j]:
                    true.append(y if correct[i] else 1 - y)
        assert own.judged[k] == (len(right) > 0)
        assert known.judged[k] == (len(true) > 0)
        if right:
            np.testing.assert_allclose(own.agreed[k], np.mean(right), rtol=1e-5)
        if true:
            np.testing.assert_allclose(known.agreed[k], np.mean(true), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: inference.sampled_pairs(KEY, 2, 4), ValueError, "nodes must be"),
        (lambda: inference.all_pairs(2), ValueError, "nodes must be"),
        (lambda: inference.by_strength(prior=-1.0), ValueError, "prior must be"),
        (lambda: inference.by_elo(step=0.0), ValueError, "step must be"),
        (lambda: inference.by_majority(weighted=1), TypeError, "weighted must be"),
        (lambda: inference.clustered(3), TypeError, "rule must be"),
        (
            lambda: inference.weighted_wins(np.full((3, 1, 2), 3), np.ones((3, 1)), np.ones(3)),
            ValueError,
            "pairs must be",
        ),
    ],
)
def test_refusals(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
