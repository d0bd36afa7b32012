"""Web3Recommend against absorbing chains, laws of joins, and what Sybils can gain."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import p2p

KEY = jax.random.key(2)
# Root 0 likes item 0; user 1 likes items 0 and 1; the root trusts user 1.
CHAIN = p2p.view(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.0, 0.0]]))
# Root 0 likes items 0 and 1; users 1 and 2, both trusted, like one of them each, and item 2.
FORK = p2p.view(
    np.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]),
    np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
)


def lists(known):
    users, items = known.affinity.shape
    return p2p.neighbours(known, items=items, friends=users)


@jax.jit
def scores(known, stop, beta, key):
    users, items = known.affinity.shape
    walks = p2p.salsa_walks(lists(known), 0, key, walks=4000, length=60, stop=stop)
    found = p2p.visits(walks, 0, vertices=users + items, first=users)
    return p2p.decayed(found, beta=beta), found.bottleneck, walks.visited


def test_a_chain_is_its_closed_form():
    q = 0.9
    shares = np.array([1 / (1 + q**2), q**2 / (1 + q**2)])
    plain, bottleneck, _ = scores(CHAIN, 0.1, 0.0, KEY)
    np.testing.assert_allclose(plain, shares, atol=0.02)
    np.testing.assert_allclose(np.sum(plain), 1.0, rtol=1e-5)
    np.testing.assert_allclose(bottleneck, [0.0, 1.0])
    cut, _, _ = scores(CHAIN, 0.1, 0.8, KEY)
    # The same walks: what lies behind user 1 keeps exactly 1 - beta.
    np.testing.assert_allclose(cut, plain * np.array([1.0, 0.2]), rtol=1e-5)


def test_two_routes_that_share_no_vertex_are_no_bottleneck():
    plain, bottleneck, _ = scores(FORK, 0.1, 0.8, KEY)
    np.testing.assert_allclose(bottleneck[:2], 0.0)
    assert abs(float(bottleneck[2]) - 0.5) < 0.05
    np.testing.assert_allclose(np.sum(plain), 1.0, rtol=1e-5)


def test_who_stops_at_once_reaches_nothing():
    plain, _, visited = scores(CHAIN, 1.0, 0.8, KEY)
    np.testing.assert_array_equal(plain, [0.0, 0.0])
    np.testing.assert_array_equal(visited[:, 1:], -1)


def test_walks_go_by_the_edges_alone():
    rng = np.random.default_rng(0)
    affinity = rng.random((7, 9)) * (rng.random((7, 9)) < 0.4)
    trust = rng.random((7, 7)) * (rng.random((7, 7)) < 0.4)
    np.fill_diagonal(trust, 0)
    known = p2p.view(affinity.astype(np.float32), trust.astype(np.float32))
    paths = np.asarray(
        jax.jit(lambda: p2p.salsa_walks(lists(known), 0, KEY, walks=500, length=30))().visited
    )
    fans = (affinity > 0).sum(0)
    for path in paths:
        path = path[path >= 0]
        assert path[0] == 0
        for step, (a, b) in enumerate(itertools.pairwise(path)):
            if step % 2 == 0:
                assert affinity[a, b - 7] > 0
                assert step == 0 or b != path[step - 1]
            else:
                before = path[step - 1]
                assert trust[before, b] > 0
                assert fans[a - 7] > 1
                if ((affinity[:, a - 7] > 0) & (trust[before] > 0)).any():
                    assert affinity[b, a - 7] > 0
    # Where walks go from the root is the root's liking.
    first = np.bincount(paths[:, 1][paths[:, 1] >= 7] - 7, minlength=9)
    np.testing.assert_allclose(first / first.sum(), affinity[0] / affinity[0].sum(), atol=0.07)


def test_bottlenecks_are_counted_as_in_numpy():
    rng = np.random.default_rng(1)
    paths = rng.integers(0, 6, (40, 8))
    paths[:, 0] = 0
    for row in paths:
        row[rng.integers(2, 9) :] = -1
    found = jax.jit(lambda w: p2p.visits(w, 0, vertices=6, first=2))(p2p.Walks(jnp.asarray(paths)))
    for v in range(2, 6):
        through = [set(row[: list(row).index(v)]) for row in paths if v in row]
        shares = [np.mean([x in one for one in through]) for x in range(1, 6) if x != v]
        np.testing.assert_allclose(found.counts[v - 2], (paths == v).sum())
        np.testing.assert_allclose(found.bottleneck[v - 2], max(shares), rtol=1e-6)


def test_trust_on_a_chain_is_its_closed_form():
    friends, trusting = jnp.array([[1], [2], [-1]]), jnp.array([[1.0], [2.0], [0.0]])
    walks = jax.jit(lambda: p2p.trust_walks(friends, trusting, 0, KEY, walks=4000, length=20))()
    found = p2p.without_root(p2p.visits(walks, 0, vertices=3), 0)
    np.testing.assert_allclose(found.bottleneck, [0.0, 0.0, 1.0])
    np.testing.assert_allclose(p2p.decayed(found, beta=0.0), [0, 1 / 1.9, 0.9 / 1.9], atol=0.02)


@pytest.mark.slow
def test_renewed_walks_keep_their_beginnings_and_have_the_law_of_new_ones():
    graph = lists(FORK)
    old = p2p.salsa_walks(graph, 0, KEY, walks=3000, length=20)
    # User 1 no longer likes item 2.
    now = p2p.heard(FORK, p2p.Statements(*map(jnp.array, ([1], [2], [0.0], [5]))))
    changed = jnp.array([False, True, False])
    renewed = p2p.salsa_walks(
        lists(now), 0, jax.random.key(9), walks=3000, length=20, since=old, changed=changed
    )
    before, after = np.asarray(old.visited), np.asarray(renewed.visited)
    untouched = ~(before == 1).any(1)
    np.testing.assert_array_equal(before[untouched], after[untouched])
    at = np.argmax(before == 1, axis=1)
    for a, b, place in zip(before[~untouched], after[~untouched], at[~untouched], strict=True):
        np.testing.assert_array_equal(a[: place + 1], b[: place + 1])
    fresh = np.asarray(p2p.salsa_walks(lists(now), 0, KEY, walks=3000, length=20).visited)
    shares = [np.bincount(w[w >= 3] - 3, minlength=3) / 3000 for w in (after, fresh)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.08)


def random_view(seed):
    rng = np.random.default_rng(seed)

    def edges(rows, columns):
        time = rng.integers(-1, 4, (rows, columns))
        weight = np.where(time >= 0, rng.integers(0, 3, (rows, columns)), 0)
        return jnp.asarray(weight, jnp.float32), jnp.asarray(time, jnp.int32)

    return p2p.View(*edges(3, 4), *edges(3, 3))


def test_joins_of_views_are_those_of_a_semilattice():
    a, b, c = map(random_view, range(3))
    join = p2p.joined_views
    for left, right in (
        (join(a, b), join(b, a)),
        (join(join(a, b), c), join(a, join(b, c))),
        (join(a, a), a),
        (join(join(a, b), b), join(a, b)),
    ):
        jax.tree.map(np.testing.assert_array_equal, left, right)


def test_the_newest_statement_counts_in_whatever_order():
    said = p2p.Statements(
        source=jnp.array([0, 0, 1, -1, 0]),
        target=jnp.array([1, 1, 0, 0, 0]),
        weight=jnp.array([2.0, 3.0, 4.0, 9.0, 7.0]),
        time=jnp.array([5, 4, 0, 9, 0]),
    )
    found = p2p.heard(CHAIN, said)
    # (0, 1): the statement of time 5; (1, 0) and (0, 0) were stated at time 0 already.
    np.testing.assert_allclose(found.affinity, [[1.0, 2.0], [0.5, 0.5]])
    turned = p2p.heard(CHAIN, p2p.Statements(*(column[::-1] for column in said)))
    jax.tree.map(np.testing.assert_array_equal, found, turned)
    jax.tree.map(np.testing.assert_array_equal, found, p2p.heard(found, said))
    oneself = p2p.Statements(*map(jnp.array, ([0], [0], [1.0], [3])))
    assert float(p2p.heard(CHAIN, None, oneself).trust[0, 0]) == 0.0


@pytest.mark.slow
def test_a_peer_passes_on_the_heaviest_edges_of_users_in_the_news():
    times = jnp.array([[0, -1, 3], [-1, -1, -1], [1, 1, 1]])
    known = p2p.View(
        jnp.array([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.3, 0.9, 0.6]]),
        times,
        jnp.zeros((3, 3)),
        jnp.full((3, 3), -1),
    )
    keys = jax.random.split(KEY, 4000)
    likes, trusts = jax.jit(jax.vmap(lambda key: p2p.passed_on(known, key, edges=2)))(keys)
    assert (np.asarray(trusts.source) == -1).all()
    # User 0 has edges of times 0 and 3, user 2 three of time 1: 1 + 4 against 3 x 2.
    first = np.asarray(likes.source[:, 0])
    np.testing.assert_allclose(np.mean(first == 0), 5 / 11, atol=0.04)
    for user, targets in ((0, [0, 2]), (2, [1, 2])):
        rows = np.asarray(likes.target)[first == user]
        assert (rows == targets).all()
    # In a window of one the newest edge alone counts.
    newest, _ = p2p.passed_on(known, KEY, edges=3, window=1)
    np.testing.assert_array_equal(newest.source, [0, 0, -1])
    np.testing.assert_array_equal(newest.time[:2], [0, 3])


@pytest.mark.slow
def test_gossip_brings_all_peers_to_the_same_view():
    rng = np.random.default_rng(5)
    affinity = jnp.asarray(rng.random((6, 5)) * (rng.random((6, 5)) < 0.6), jnp.float32)
    trust = jnp.asarray(rng.random((6, 6)) * (1 - np.eye(6)), jnp.float32)
    whole = p2p.view(affinity, trust, time=1)
    # Peer i begins with the edges of user i alone.
    own = jnp.eye(6, dtype=bool)[:, :, None]
    begin = p2p.View(
        jnp.where(own, affinity, 0.0),
        jnp.where(own, whole.affinity_time, -1),
        jnp.where(own, trust, 0.0),
        jnp.where(own, whole.trust_time, -1),
    )

    @jax.jit
    def gossiped(key):
        def round(views, key):
            telling, choosing = jax.random.split(key)
            said = jax.vmap(lambda v, k: p2p.passed_on(v, k, edges=6))(
                views, jax.random.split(telling, 6)
            )
            hears = jax.random.permutation(choosing, 6)
            return jax.vmap(p2p.heard)(views, *jax.tree.map(lambda leaf: leaf[hears], said)), None

        return jax.lax.scan(round, begin, jax.random.split(key, 150))[0]

    found = gossiped(KEY)
    for peer in range(6):
        np.testing.assert_allclose(found.affinity[peer], whole.affinity)
        np.testing.assert_allclose(found.trust[peer], whole.trust)


@pytest.fixture(scope="module")
def peer():
    algorithm = p2p.web3recommend(items=3, friends=3, walks=400, length=20)
    nobody = jnp.array([-1])
    silence = p2p.Statements(nobody, nobody, jnp.zeros(1), nobody)
    state = jax.jit(algorithm.init)(KEY, (0, FORK, jnp.array([1.0, 1.0, 0.0])))
    step = jax.jit(algorithm.step)
    return (
        algorithm,
        state,
        lambda s, item: step(s, (p2p.Heard(silence, silence, jnp.int32(item)), KEY)),
    )


@pytest.mark.slow
def test_a_peer_recommends_what_its_friends_like(peer):
    _, state, step = peer
    same, metrics = step(state, -1)
    assert int(metrics["best"]) == 2
    np.testing.assert_array_equal(p2p.recommended(same, 3), [2, -1, -1])
    np.testing.assert_allclose(same.known.affinity, FORK.affinity)
    assert int(same.clock) == int(state.clock)


def test_who_led_to_an_item_gains_trust_as_the_liking_grows(peer):
    _, state, step = peer
    after, metrics = step(state, 2)
    np.testing.assert_allclose(after.known.affinity[0], [1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    # Users 1 and 2 stood before item 2 in the walks; each gains the new liking.
    np.testing.assert_array_equal(after.led[2], [False, True, True])
    np.testing.assert_allclose(after.known.trust[0], [0.0, 4 / 3, 4 / 3], rtol=1e-6)
    assert int(metrics["best"]) == -1
    again, _ = step(after, 0)
    np.testing.assert_allclose(again.known.affinity[0], [0.5, 0.25, 0.25], rtol=1e-6)
    np.testing.assert_allclose(again.known.trust[0, 1:], 1 + 0.25, rtol=1e-6)
    assert int(again.clock) == int(state.clock) + 2


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_decays_are_swept(devices):
    nobody = jnp.full((4, 1), -1)
    silence = p2p.Statements(nobody, nobody, jnp.zeros((4, 1)), nobody)
    rounds = dx.Events(p2p.Heard(silence, silence, jnp.array([-1, 2, 0, 2])))
    swept = dx.sweep(
        lambda beta, stop: p2p.web3recommend(
            items=3, friends=3, walks=50, length=10, beta=beta, stop=stop
        ),
        lambda algorithm, key: algorithm.init(key, (0, FORK, jnp.array([1.0, 1.0, 0.0]))),
        rounds,
        grid={"beta": [0.0, 1.0], "stop": [0.1, 0.5]},
        seeds=2,
        key=KEY,
        rounds=4,
        devices=jax.devices()[:devices],
        progress=False,
    )
    assert swept.metrics["length"].shape == (2, 2, 2, 4)
    assert (swept.metrics["length"][:, 0] > swept.metrics["length"][:, 1]).all()
    algorithm, key = p2p.web3recommend(items=3, friends=3, walks=50, length=10, beta=1.0), KEY
    own = jax.random.fold_in(key, 1)
    state = jax.jit(algorithm.init)(own, (0, FORK, jnp.array([1.0, 1.0, 0.0])))
    _, alone = jax.jit(lambda s: dx.rollout(algorithm, s, rounds, own, 4))(state)
    np.testing.assert_allclose(swept.metrics["length"][1, 0, 1], alone["length"], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: p2p.view(np.ones((2, 3)), np.ones((2, 2))), "trust must be 0 on the diagonal"),
        (lambda: p2p.view(-np.ones((2, 3)), np.zeros((2, 2))), "affinity must be"),
        (lambda: p2p.web3recommend(stop=0.0), "stop must be"),
        (lambda: p2p.web3recommend(beta=1.5), "beta must be"),
        (lambda: p2p.neighbours(CHAIN, items=3, friends=1), "items must be"),
        (
            lambda: p2p.salsa_walks(lists(CHAIN), 0, KEY, changed=jnp.ones(2, bool)),
            "since and changed",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
