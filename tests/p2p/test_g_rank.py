"""G-Rank against its paper's formulas, NumPy, and what must hold of any run."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import p2p
from dflax.p2p.g_rank.click_log import clicked, counts, empty_log, sampled, told
from dflax.p2p.g_rank.ranking import Search, results, searched

KEY = jax.random.key(11)
N, Q, M, TOP = 6, 4, 12, 2
TAGS = np.zeros((M, Q), bool)
TAGS[np.arange(M), np.arange(M) % Q] = TAGS[np.arange(M), (np.arange(M) + 1) % Q] = True
PEERS = dx.Population(N)


def log_of(clicks, peers, known=None):
    log = empty_log(peers, len(clicks) + 3)
    for one in clicks:
        log = clicked(log, *map(jnp.int32, one))
    everything = jnp.arange(log.origin.shape[0]) < len(clicks)
    return log._replace(known=jnp.broadcast_to(everything, log.known.shape))


def reference(log, peer, top, gate):
    known = np.asarray(log.known[peer])
    rows = [
        (int(o), int(t), int(m))
        for o, t, m, k in zip(log.origin, log.term, log.item, known, strict=True)
        if k
    ]
    raw = []
    for other in range(log.known.shape[0]):

        def frequent(who):
            often = np.bincount([t for o, t, _ in rows if o == who], minlength=Q)
            return {t for t in np.argsort(-often, kind="stable")[:top] if often[t]}

        def pairs(who):
            return {(t, m) for o, t, m in rows if o == who}

        kt, km = len(frequent(peer) & frequent(other)), len(pairs(peer) & pairs(other))
        ku = len({m for _, m in pairs(peer) | pairs(other)})
        raw.append(0.0 if ku == 0 or (gate and km == 0) else (kt + km**2) / ku)
    return np.array(raw) / max(max(raw), 1e-30)


def test_the_papers_example_by_hand():
    # Rock is term 0, jazz 1; items from 1. Peer 0: (rock, 1), (rock, 2), (jazz, 3).
    clicks = [(0, 0, 1), (0, 0, 2), (0, 1, 3), (1, 0, 1), (1, 1, 4)]
    tags = jnp.ones((5, 2), bool)
    log = log_of(clicks, 2)
    alike = p2p.similarities(log, jnp.int32(0), tags, top=2)
    np.testing.assert_allclose(alike, [1.0, 9 / 44], rtol=1e-6)

    def scores(isolation, log, term):
        search = Search(log, jnp.int32(0), jnp.int32(term), tags, KEY)
        return p2p.g_rank_score(isolation, top=2)(search)

    np.testing.assert_allclose(scores(0.0, log, 0)[1:3], [1 + 9 / 44, 1.0], rtol=1e-6)
    np.testing.assert_allclose(scores(0.0, log, 1)[3:5], [1.0, 9 / 44], rtol=1e-6)
    np.testing.assert_allclose(scores(1.0, log, 1)[3:5], [2.0, 53 / 44], rtol=1e-6)
    # Two clicks more by the other flip the order at F = 1, and not at F = 0.
    more = log_of([*clicks, (1, 1, 4), (1, 1, 4)], 2)
    assert np.argmax(scores(1.0, more, 1)) == 4
    assert np.argmax(scores(0.0, more, 1)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("gate", [True, False])
def test_similarities_are_the_formula_on_random_logs(gate):
    alike = jax.jit(lambda log, peer: p2p.similarities(log, peer, TAGS, top=TOP, gate=gate))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        clicks = [(rng.integers(N), rng.integers(Q), rng.integers(M)) for _ in range(40)]
        log = log_of(clicks, N)
        log = log._replace(known=log.known & (rng.random(log.known.shape) < 0.6))
        for peer in range(N):
            found = alike(log, jnp.int32(peer))
            np.testing.assert_allclose(found, reference(log, peer, TOP, gate), rtol=1e-5)


def test_a_list_has_matches_first_then_scores_then_numbers():
    scores = jnp.array([1.0, 5.0, 2.0, 2.0, 9.0])
    matches = jnp.array([True, False, True, True, False])
    np.testing.assert_array_equal(results(scores, matches), [2, 3, 0, 4, 1])


@pytest.mark.slow
def test_a_term_without_known_clicks_has_its_matches_in_random_order():
    log = log_of([(0, 0, 3)], 2)
    lists = [
        searched(
            p2p.popularity_score(),
            Search(log, jnp.int32(0), jnp.int32(1), jnp.asarray(TAGS), jax.random.key(k)),
        )
        for k in range(4)
    ]
    matching = int(TAGS[:, 1].sum())
    assert {tuple(np.sort(one[:matching])) for one in lists} == {tuple(np.flatnonzero(TAGS[:, 1]))}
    assert len({tuple(one.tolist()) for one in lists}) > 1


def test_gossip_is_an_or_and_makes_aware():
    log = empty_log(3, 4)
    log = clicked(clicked(log, jnp.int32(0), 1, 2), jnp.int32(1), 0, 5)
    after = told(log, jnp.int32(0), jnp.int32(2), True)
    np.testing.assert_array_equal(after.known[2], [True, False, False, False])
    np.testing.assert_array_equal(after.aware[2], [True, False, False])
    untouched = told(log, jnp.int32(0), jnp.int32(2), jnp.bool_(False))
    for before, now in zip(log, untouched, strict=True):
        np.testing.assert_array_equal(before, now)
    full = log
    for _ in range(5):
        full = clicked(full, jnp.int32(2), 0, 0)
    assert int(full.used) == 4


@pytest.mark.slow
def test_a_sample_has_the_size_that_is_asked_for():
    log = log_of([(0, 0, m) for m in range(10)], 2)
    for share, size in ((0.1, 1), (0.11, 2), (1.0, 10)):
        row = sampled(log, jnp.int32(0), share, KEY)
        assert int(row.sum()) == size
        assert not np.asarray(row & ~log.known[0]).any()


@pytest.fixture(scope="module")
def run():
    algorithm = p2p.g_rank(
        p2p.g_rank_score(0.0, top=TOP), peers=N, attackers=2, capacity=N * Q + 160
    )

    @jax.jit
    def whole(key, tags):
        start = algorithm.init(key, tags)
        middle, first = dx.rollout(algorithm, start, PEERS, key, 60)
        came = p2p.joined(middle, key, attackers=2)
        hit = p2p.spammed(
            came, p2p.g_rank_score(0.0, top=TOP), key, attackers=2, queries=20, attack="inflation"
        )
        end, second = dx.rollout(algorithm, hit, PEERS, key, 60, 60)
        measured = [p2p.rank_distance(state, benign=N) for state in (start, middle, end)]
        return (start, middle, came, hit, end), (first, second), measured

    return whole(KEY, jnp.asarray(TAGS))


@pytest.mark.slow
def test_what_is_known_is_never_forgotten(run):
    states, (first, second), _ = run
    for before, after in itertools.pairwise(states):
        assert not np.asarray(before.log.known & ~after.log.known).any()
        assert not np.asarray(before.log.aware & ~after.log.aware).any()
    assert (np.asarray(first["peer"]) < N).all()
    assert (np.asarray(second["peer"]) >= N).any()
    assert not np.asarray(first["full"]).any()


@pytest.mark.slow
def test_everyone_begins_with_a_click_for_each_term(run):
    start = run[0][0]
    log = start.log
    assert int(log.used) == N * Q
    taken = np.asarray(log.origin[: N * Q]), np.asarray(log.term[: N * Q])
    np.testing.assert_array_equal(taken, np.divmod(np.arange(N * Q), Q))
    assert TAGS[np.asarray(log.item[: N * Q]), taken[1]].all()
    own = np.arange(N * Q).reshape(N, Q)
    for peer in range(N):
        assert np.asarray(log.known[peer, own[peer]]).all()
        # And a tenth of somebody's log beside.
        assert Q < int(log.known[peer].sum()) <= Q + 2
    np.testing.assert_array_equal(start.alive, np.arange(N + 2) < N)


def test_who_is_pulled_from_becomes_aware_of_who_pulls(run):
    _, middle, came, hit, _ = run[0]
    aware = np.asarray(middle.log.aware[:N, :N])
    assert aware.mean() > 0.9
    assert not np.asarray(middle.log.aware[:, N:]).any()
    assert np.asarray(came.alive).all()
    # Each attacker met one benign peer.
    assert np.asarray(hit.log.aware[:N, N:]).sum(0).tolist() == [1, 1]
    spam = np.asarray(hit.log.origin) >= N
    assert spam.sum() == 40
    assert TAGS[np.asarray(hit.log.item)[spam], np.asarray(hit.log.term)[spam]].all()


def test_learning_comes_near_the_order_of_all_clicks_and_spam_leads_away(run):
    start, middle, end = run[2]
    assert float(middle["distance"]) < 0.5 * float(start["distance"])
    assert float(start["infected"]) == 0.0
    assert float(end["infected"]) > 0.5


@pytest.mark.slow
def test_who_knows_everything_is_at_distance_0(run):
    state = run[0][1]
    everything = state._replace(
        log=state.log._replace(known=state.log.known | (state.log.origin >= 0))
    )
    found = p2p.rank_distance(everything, benign=N)
    np.testing.assert_allclose([found["distance"], found["ndcg"], found["leader"]], [0, 1, 1])


def test_distances_by_hand():
    matches = jnp.array([True, True, True, False])
    ours, best = jnp.array([1.0, 3.0, 2.0, 9.0]), jnp.array([3.0, 1.0, 0.0, 0.0])
    # Ours is 1, 2, 0; theirs 0, 1, 2.
    np.testing.assert_allclose(p2p.footrule(ours, best, matches), 4)
    gain = (3 / np.log2(4) + 1 / np.log2(2)) / (3 / np.log2(2) + 1 / np.log2(3))
    np.testing.assert_allclose(p2p.ndcg(ours, best, matches), gain, rtol=1e-6)
    np.testing.assert_allclose(p2p.footrule(best, best, matches), 0)


def test_counts_are_those_of_the_row():
    log = log_of([(0, 1, 2), (1, 1, 2), (1, 0, 3)], 2)
    found = counts(log, log.known[0], 2, 4)
    np.testing.assert_array_equal(found, [[0, 0, 0, 1], [0, 0, 2, 0]])


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_isolation_is_swept(devices):
    def factory(isolation):
        return p2p.g_rank(
            p2p.g_rank_score(isolation, top=TOP), peers=N, capacity=N * Q + 10, gossip="push"
        )

    swept = dx.sweep(
        factory,
        lambda algorithm, key: algorithm.init(key, jnp.asarray(TAGS)),
        PEERS,
        grid={"isolation": [0.0, 0.25, 0.5, 1.0]},
        seeds=2,
        key=KEY,
        rounds=10,
        devices=jax.devices()[:devices],
        progress=False,
    )
    algorithm, key = factory(0.5), jax.random.fold_in(KEY, 1)
    state = algorithm.init(key, jnp.asarray(TAGS))
    _, alone = jax.jit(lambda s: dx.rollout(algorithm, s, PEERS, key, 10))(state)
    for name, values in alone.items():
        np.testing.assert_array_equal(swept.metrics[name][2, 1], values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: p2p.g_rank(p2p.local_score(), peers=1, capacity=9), "peers must be"),
        (
            lambda: p2p.g_rank(p2p.local_score(), peers=3, capacity=9, gossip="mail"),
            "gossip must be",
        ),
        (
            lambda: p2p.g_rank(p2p.local_score(), peers=3, capacity=9).init(KEY, TAGS),
            "capacity must hold the first 12 clicks",
        ),
        (
            lambda: p2p.g_rank(p2p.local_score(), peers=3, capacity=99).init(KEY, TAGS & False),
            "tags must have an item for every term, got none for term 0",
        ),
        (lambda: p2p.g_rank_score(1.5), "isolation must be"),
        (lambda: p2p.similarities(empty_log(2, 3), 0, TAGS, top=Q + 1), "top must be"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
