"""The metric, tables and lookups against references in plain Python."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dflax import p2p

IDS = st.integers(0, 2**32 - 1)
N, K, Q = 100, 4, 60
GREEDY = jax.jit(p2p.greedy_lookup)
LOOK = jax.jit(
    p2p.iterative_lookup,
    static_argnames=("count", "parallelism", "rounds", "source_counts", "at_once"),
)


def word(value):
    return np.uint32(value)


@settings(max_examples=100, deadline=None)
@given(IDS, IDS, IDS)
def test_xor_is_a_metric_and_says_whom(x, y, z):
    def away(a, b):
        return int(p2p.xor_distance(word(a), word(b)))

    assert away(x, y) == away(y, x) == x ^ y
    assert (away(x, y) == 0) == (x == y)
    assert away(x, z) <= away(x, y) + away(y, z)
    assert x ^ away(x, y) == y
    assert int(p2p.bucket(word(x))) == x.bit_length() - 1


def network(n=N, k=K, seed=0):
    return p2p.routing(p2p.drawn_ids(n, seed), bucket_size=k, seed=seed)


def queries(n=N, seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, n, Q).astype(np.int32), rng.integers(0, 2**32, Q, dtype=np.uint32)


def test_every_bucket_has_as_many_contacts_as_there_are_and_at_most_k():
    routing = network()
    ids = np.asarray(routing.ids).astype(np.int64)
    assert len(set(ids.tolist())) == N
    all_buckets = np.floor(np.log2(np.maximum(ids[:, None] ^ ids, 1))).astype(int)
    np.fill_diagonal(all_buckets, -1)
    for own, contacts in enumerate(np.asarray(routing.contacts)):
        known = contacts[contacts >= 0]
        assert len(set(known.tolist())) == len(known)
        np.testing.assert_array_equal(
            np.bincount(all_buckets[own, known], minlength=32),
            np.minimum(np.bincount(np.delete(all_buckets[own], own), minlength=32), K),
        )
        assert (contacts[len(known) :] == -1).all()


def test_contacts_are_a_random_choice():
    """Bucket 31 of a peer has about 50 peers: over 400 tables each is among the four equally often."""
    ids = p2p.drawn_ids(N, 0)
    counts = np.zeros(N)
    for seed in range(400):
        counts[np.asarray(p2p.routing(ids, bucket_size=K, seed=seed).contacts)[0, :K]] += 1
    far = (ids[0] ^ ids) >> 31 == 1
    assert counts[~far].sum() == 0
    expected = 400 * K / far.sum()
    chi = ((counts[far] - expected) ** 2 / expected).sum()
    assert abs(chi - far.sum()) < 5 * np.sqrt(2 * far.sum())


def known(routing, peer):
    contacts = np.asarray(routing.contacts)[peer]
    return {int(one) for one in contacts[contacts >= 0]}


def hops(routing, source, key):
    ids, at, count = [int(one) for one in routing.ids], source, 0
    while True:
        best = min(known(routing, at), key=lambda one: ids[one] ^ key)
        if ids[best] ^ key >= ids[at] ^ key:
            return at, count
        at, count = best, count + 1


def looked_up(routing, source, key, count, parallelism, source_counts):
    """Kademlia's lookup as its text has it."""
    ids = [int(one) for one in routing.ids]

    def nearest(peers):
        return sorted(peers, key=lambda one: ids[one] ^ key)[:count]

    asked = {source}
    candidates = known(routing, source) | ({source} if source_counts else set())
    rounds = messages = 0
    while fresh := [one for one in nearest(candidates) if one not in asked][:parallelism]:
        for one in fresh:
            candidates |= set(nearest(known(routing, one)))
        if not source_counts:
            candidates.discard(source)
        asked |= set(fresh)
        rounds, messages = rounds + 1, messages + len(fresh)
    return nearest(candidates), rounds, messages


def test_greedy_lookups_hop_as_the_reference_does():
    for k in (1, K):
        routing, (sources, keys) = network(k=k), queries()
        found = GREEDY(routing, sources, keys)
        expected = [hops(routing, int(s), int(x)) for s, x in zip(sources, keys, strict=True)]
        np.testing.assert_array_equal(np.stack([found.found, found.hops], 1), expected)
        assert found.done.all()


@pytest.mark.parametrize("source_counts", [False, True])
def test_iterative_lookups_ask_as_the_reference_does(source_counts):
    routing, (sources, keys) = network(), queries()
    # Keys that are a peer's id, the source's own among them.
    keys = keys.copy()
    keys[:8] = np.asarray(routing.ids)[:8]
    sources[:4] = np.arange(4)
    found = LOOK(
        routing, sources, keys, count=6, parallelism=3, rounds=16, source_counts=source_counts
    )
    for place, (source, key) in enumerate(zip(sources, keys, strict=True)):
        peers, rounds, messages = looked_up(routing, int(source), int(key), 6, 3, source_counts)
        assert found.found[place].tolist() == peers + [-1] * (6 - len(peers))
        assert (found.rounds[place], found.messages[place]) == (rounds, messages)
    assert found.done.all()


def test_among_k_plus_one_peers_everybody_is_found_in_order_in_one_hop():
    routing = network(n=9, k=8)
    sources, keys = queries(9)
    found = LOOK(routing, sources, keys, count=8)
    away = np.asarray(routing.ids) ^ keys[:, None]
    order = [
        [one for one in np.argsort(row) if one != s] for row, s in zip(away, sources, strict=True)
    ]
    np.testing.assert_array_equal(found.found, order)
    assert GREEDY(routing, sources, keys).hops.max() <= 1
    # More are asked for than there are.
    more = LOOK(routing, sources, keys, count=12, at_once=16)
    np.testing.assert_array_equal(more.found[:, :8], found.found)
    assert (np.asarray(more.found[:, 8:]) == -1).all()


def test_a_lookup_that_is_cut_short_says_so():
    routing, (sources, keys) = network(), queries()
    assert not LOOK(routing, sources, keys, count=6, rounds=1).done.all()
    assert not p2p.greedy_lookup(network(k=1), sources, keys, most=1).done.all()


def test_records_end_unless_they_are_announced_again():
    records = p2p.provider_records(life=10.0, every=5.0)
    state = records.init(np.array([[0, 1], [2, -1], [-1, -1]]), 4)
    state = records.announce(state, 0, 3, 0.0)
    state = records.announce(state, 2, 3, 0.0)
    assert records.find(state, 0, 9.9).tolist() == [False, False, False, True]
    assert not records.find(state, 0, 10.0).any()
    # Nobody holds content 2, and nobody who holds content 0 may be alive.
    assert not records.find(state, 2, 1.0).any()
    assert not records.find(state, 0, 1.0, np.array([False, False, True, True])).any()
    assert records.find(state, 0, 1.0, np.array([False, True, True, True])).any()
    again = records.announce(state, 0, 3, 8.0)
    assert records.find(again, 0, 17.9).any()
    # What was announced in the meantime to another holder is joined to it, whatever comes first.
    other = records.announce(state, 0, 1, 4.0)
    for joined in (records.join(again, other), records.join(other, again)):
        assert records.find(joined, 0, 12.0).tolist() == [False, True, False, True]
    early, late = records.clean(state, 4.0), records.clean(state, 11.0)
    assert np.isfinite(early.expires).sum() == 2
    assert not np.isfinite(late.expires).any()
    assert late.cleaned == 11.0


def test_wrong_lookups_are_refused():
    routing, (sources, keys) = network(), queries()
    with pytest.raises(TypeError, match="keys must be uint32"):
        p2p.greedy_lookup(routing, sources, keys.astype(np.int64))
    with pytest.raises(ValueError, match="keys must be of shape"):
        p2p.greedy_lookup(routing, sources, keys[:3])
    with pytest.raises(ValueError, match="sources must be"):
        p2p.iterative_lookup(routing, sources + N, keys)
    with pytest.raises(ValueError, match="ids must be at least two distinct"):
        p2p.routing(np.zeros(3, np.uint32))
    with pytest.raises(TypeError, match="routing must be"):
        p2p.greedy_lookup(3, sources, keys)
