"""Deltas lead where whole states lead; digests differ where states do."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from replicated import EVENTS, HISTORIES, SLOTS, TYPES, N, of, program, same

from dflax import p2p


@functools.cache
def exchanged(name):
    crdt = TYPES[name]

    @jax.jit
    def both(mine, theirs):
        missing = p2p.newer(theirs, p2p.version_of(mine))
        delta = p2p.only(crdt, theirs, missing)
        return crdt.join(mine, delta), crdt.join(mine, theirs), missing

    return both


@pytest.mark.parametrize("name", ["stamped map", "stamped set"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=HISTORIES)
def test_what_a_version_lacks_is_all_that_must_be_sent(name, rows):
    history = jax.device_get(program(name)[0](np.array(rows, np.int32)))
    for mine, theirs in ((0, 1), (2, 0)):
        by_delta, by_state, missing = exchanged(name)(
            of(history, EVENTS, mine), of(history, EVENTS - 2, theirs)
        )
        assert same(by_delta, by_state)
        # Nothing is sent to who knows it all.
        _, _, more = exchanged(name)(by_state, of(history, EVENTS - 2, theirs))
        assert not np.any(more)
        assert missing.shape == (SLOTS,)


def test_the_version_is_how_many_writes_were_seen():
    members = TYPES["stamped set"]
    write = jax.jit(members.write)
    first = write(write(members.bottom(), 1, 0, True), 1, 2, True)
    assert p2p.version_of(first).tolist() == [0, 2, 0]
    # Removing what is not there changes nothing, and is no write.
    assert p2p.version_of(write(first, 2, 1, False)).tolist() == [0, 2, 0]
    assert p2p.newer(first, np.array([0, 1, 0])).tolist() == [False, False, True]


@pytest.mark.slow
def test_digests_are_equal_where_states_are_and_differ_where_an_entry_does():
    table = p2p.lww_map(50)
    write, digest, digests = map(jax.jit, (table.write, p2p.digest, p2p.entry_digests))
    rng = np.random.default_rng(0)
    replica = table.bottom()
    for slot in rng.permutation(50)[:20]:
        replica = write(replica, 3, int(slot), int(rng.integers(9)), 0)
    replica = jax.device_get(replica)
    assert digest(replica) == digest(jax.tree.map(np.copy, replica))
    roots = {int(digest(replica))}
    for leaf in range(4):
        for slot in range(5):
            other = jax.tree.map(np.copy, replica)
            other[leaf][slot] += 1
            differ = np.asarray(digests(replica)) != np.asarray(digests(other))
            assert np.flatnonzero(differ).tolist() == [slot]
            roots.add(int(digest(other)))
    assert len(roots) == 21
    # The root depends on the order of the entries.
    assert p2p.digest(np.arange(5)) != p2p.digest(np.array([0, 2, 1, 3, 4]))
    floats = np.array([[0.1, 0.2]], np.float32)
    assert p2p.digest(floats) != p2p.digest(floats[:, ::-1].copy())


@pytest.mark.slow
def test_wrong_deltas_are_refused():
    table, stamp = TYPES["lww_map"], TYPES["stamped map"].bottom()
    with pytest.raises(TypeError, match="stamp must be"):
        p2p.version_of(table.bottom())
    with pytest.raises(ValueError, match="version must be"):
        p2p.newer(stamp, np.zeros(N + 1, int))
    with pytest.raises(TypeError, match="replica must be one of the data type"):
        p2p.only(table, stamp, np.ones(SLOTS, bool))
    with pytest.raises(ValueError, match="entries must be"):
        p2p.only(table, table.bottom(), np.ones(SLOTS + 1, bool))
    with pytest.raises(TypeError, match="crdt must be"):
        p2p.stamped(3, 2)
