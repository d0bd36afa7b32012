"""Rounds of gossip against NumPy, partitions, counted messages, and eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import p2p

N = 16
KEY = jax.random.key(2)
SOURCE = dx.Population(N)
# Peer i has counted once: a replica tells exactly whom it has heard of.
ONES = np.eye(N, dtype=np.int32)
HALVES = np.kron(np.eye(2, dtype=bool), np.ones((N // 2, N // 2), bool))


@functools.cache
def rounds(schedule, count=1):
    algorithm = p2p.gossiped(p2p.g_counter(N), schedule=schedule)

    @jax.jit
    def run(key, link=None):
        start = algorithm.init(key, ONES, link)
        return dx.rollout(algorithm, start, SOURCE, key, count)

    return run


def heard(schedule, key=KEY, link=None):
    return np.asarray(rounds(schedule)(key, link)[0].clients) > 0


@pytest.mark.parametrize("number", range(3))
def test_a_round_joins_who_called_and_who_was_called(number):
    key = jax.random.fold_in(KEY, number)
    pulled = heard("pull", key)
    assert (pulled.sum(1) == 2).all()
    assert pulled.diagonal().all()
    np.testing.assert_array_equal(heard("push-pull", key), pulled | pulled.T)
    matched = heard("matching", key)
    np.testing.assert_array_equal(matched, matched.T)
    assert (matched.sum(1) == 2).all()
    known = ONES > 0
    for caller in range(N):
        (called,) = np.flatnonzero(pulled[caller] & (np.arange(N) != caller))
        known[caller] = known[called] = known[caller] | known[called]
    np.testing.assert_array_equal(heard("one by one", key), known)


def test_nobody_calls_over_a_link_that_is_not_there():
    for schedule in ("push-pull", "matching"):
        known = heard(schedule, link=HALVES)
        assert not known[~HALVES].any()
        assert known.sum() > N
    alone = rounds("push-pull")(KEY, np.zeros((N, N), bool))
    np.testing.assert_array_equal(alone[0].clients, ONES)
    assert int(alone[1]["calls"][0]) == int(alone[1]["by_state"][0]) == 0


def test_islands_agree_each_for_itself_and_all_of_them_once_they_are_linked():
    run = rounds("push-pull", 12)
    apart, metrics = run(KEY, HALVES)
    assert metrics["replicas"][0] > 2
    assert metrics["replicas"][-1] == 2
    np.testing.assert_array_equal(np.asarray(apart.clients) > 0, HALVES)
    algorithm = p2p.gossiped(p2p.g_counter(N))
    together = apart._replace(server=apart.server._replace(link=jnp.ones((N, N), bool)))
    ended, metrics = jax.jit(lambda s: dx.rollout(algorithm, s, SOURCE, KEY, 12, 12))(together)
    np.testing.assert_array_equal(ended.clients, np.ones((N, N)))
    assert metrics["replicas"][-1] == 1
    # All agree, so that no digest differs any more.
    assert metrics["by_digest"][-1] == metrics["by_entry"][-1] == 0
    assert metrics["by_state"][-1] == 2 * N * N
    assert (np.diff(metrics["replicas"]) <= 0).all()


def test_messages_are_counted_entry_by_entry():
    crdt = p2p.stamped(p2p.g_counter(N), N)
    algorithm = p2p.gossiped(crdt)
    bottom = jax.vmap(lambda i: crdt.write(crdt.bottom(), i, 1))(jnp.arange(N))
    state, metrics = jax.jit(lambda s: dx.rollout(algorithm, s, SOURCE, KEY, 1))(
        algorithm.init(KEY, bottom)
    )
    # Two peers of one entry each: each lacks the other's, and the two entries differ.
    assert metrics["calls"].tolist() == [N]
    assert metrics["by_version"].tolist() == [2 * N]
    assert metrics["by_entry"].tolist() == [4 * N]
    assert metrics["by_digest"].tolist() == metrics["by_state"].tolist() == [2 * N * N]
    pulled = heard("pull")
    np.testing.assert_array_equal(np.asarray(state.clients.replica) > 0, pulled | pulled.T)


@pytest.mark.slow
def test_eight_devices_give_what_one_gives():
    crdt = p2p.stamped(p2p.or_set(5, N), N)
    algorithm = p2p.gossiped(crdt)
    start = algorithm.init(
        KEY, jax.vmap(lambda i: crdt.write(crdt.bottom(), i, i % 5, True))(jnp.arange(N)), HALVES
    )
    alone, one = dx.run(algorithm, start, SOURCE, rounds=3, key=KEY)
    dealt, eight = dx.run(algorithm, start, SOURCE, rounds=3, key=KEY, mesh=dx.client_mesh())
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(dealt), strict=True):
        np.testing.assert_array_equal(a, b)
    assert dealt.clients.seen.sharding.spec[0] == "clients"
    for name in one.metrics:
        np.testing.assert_array_equal(one.metrics[name], eight.metrics[name])


@pytest.mark.slow
@pytest.mark.parametrize("peers", [64, 256])
def test_all_are_equal_after_about_log_n_and_one_rounds(peers):
    algorithm = p2p.gossiped(p2p.g_counter(peers))
    start = algorithm.init(KEY, np.eye(peers, dtype=np.int32))
    run = jax.jit(lambda key: dx.rollout(algorithm, start, dx.Population(peers), key, 14)[1])
    for seed in range(3):
        taken = 1 + int((np.asarray(run(jax.random.key(seed))["replicas"]) > 1).sum())
        assert abs(taken - np.log2(peers) - 1) <= 1.5


def test_wrong_gossip_is_refused():
    algorithm = p2p.gossiped(p2p.g_counter(N))
    with pytest.raises(ValueError, match="link must be symmetric"):
        algorithm.init(KEY, ONES, np.triu(np.ones((N, N), bool)))
    with pytest.raises(ValueError, match="replicas must have"):
        algorithm.init(KEY, ONES[:1])
    with pytest.raises(ValueError, match="schedule must be"):
        p2p.gossiped(p2p.g_counter(N), schedule="push")
