"""Laws of joins, and what each type means, for arbitrary histories."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replicated import EVENTS, HISTORIES, TYPES, N, of, program, same

from dflax import p2p


@pytest.mark.some(4)
@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=HISTORIES, shuffle=st.integers(0, 2**31 - 1))
def test_joins_are_those_of_a_semilattice_and_replicas_agree_in_the_end(name, rows, shuffle):
    run, joined, join, _ = program(name)
    history = jax.device_get(run(np.array(rows, np.int32)))
    rng = np.random.default_rng(shuffle)
    a, b, c = (of(history, t, i) for t, i in rng.integers(0, [EVENTS + 1, N], (3, 2)))
    assert same(join(a, b), join(b, a))
    assert same(join(a, join(b, c)), join(join(a, b), c))
    assert same(join(a, a), a)
    assert same(join(join(a, b), a), join(a, b))
    # A peer's later states know its earlier ones: writes and joins only go up.
    for peer in range(N):
        early, late = np.sort(rng.integers(0, EVENTS + 1, 2))
        assert same(
            join(of(history, early, peer), of(history, late, peer)), of(history, late, peer)
        )
    # Whatever was ever sent, in any order and repeated, gives what the last states give.
    count = (EVENTS + 1) * N
    last = np.arange(count - N, count)
    length = 2 * count
    repeated = np.concatenate([last, rng.integers(0, count, length - N)])
    orders = [np.resize(rng.permutation(last), length), rng.permutation(repeated)]
    first, second = (joined(history, order.astype(np.int32)) for order in orders)
    assert same(first, second)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rows=HISTORIES)
def test_counters_count_every_write_once(rows):
    grown = up = down = 0
    for kind, _, _, _, number, _ in rows:
        if kind == 0:
            grown += number
            up += max(2 * number - 3, 0)
            down += max(3 - 2 * number, 0)
    everything = np.arange((EVENTS + 1) * N, dtype=np.int32)
    everything = np.concatenate([everything, everything])
    found = {}
    for name in ("g_counter", "pn_counter"):
        run, joined, _, value = program(name)
        found[name] = int(value(joined(run(np.array(rows, np.int32)), everything)))
    assert found == {"g_counter": grown, "pn_counter": up - down}


def test_an_amount_below_zero_adds_nothing_to_a_counter_that_grows():
    count = TYPES["g_counter"]
    assert int(count.value(count.write(count.bottom(), 0, -5))) == 0


def test_of_equal_times_the_larger_writer_wins_everywhere():
    table = TYPES["lww_map"]
    a = table.write(table.bottom(), 0, 1, 7, 5)
    b = table.write(table.bottom(), 2, 1, 3, 5)
    for joined in (table.join(a, b), table.join(b, a)):
        assert (joined.value[1], joined.writer[1], joined.time[1]) == (3, 2, 5)
    later = table.write(a, 0, 1, 9, 6)
    assert int(table.join(b, later).value[1]) == 9


def test_a_clock_that_runs_backwards_is_lifted_and_counted():
    table = TYPES["lww_map"]
    first = table.write(table.bottom(), 0, 0, 1, 100)
    second = table.write(first, 0, 0, 2, 3)
    third = table.write(second, 0, 1, 4, 3)
    assert third.time.tolist() == [101, 102, 0]
    assert third.value.tolist() == [2, 4, 0]
    assert third.lifted.tolist() == [1, 1, 0]
    # What was written last by that clock wins also where the earlier write comes later.
    assert table.join(third, first).value.tolist() == [2, 4, 0]
    # Two values by one writer at one time, which no write makes: the join is commutative even then.
    twice = first._replace(value=first.value.at[0].set(8))
    assert same(table.join(first, twice), table.join(twice, first))


@pytest.mark.parametrize("adder", [0, 1])
def test_an_addition_wins_over_a_removal_that_did_not_see_it(adder):
    members = TYPES["or_set"]
    both = members.write(members.bottom(), 0, 2, True)
    removed = members.write(both, 1, 2, False)
    added = members.write(both, adder, 2, True)
    assert not members.value(removed)[2]
    for joined in (members.join(added, removed), members.join(removed, added)):
        assert members.value(joined).tolist() == [False, False, True]
        assert not members.value(members.write(joined, 1, 2, False))[2]
    # With one bit for each slot and writer a re-addition by the same writer is lost.
    tag = {"added": {0}, "removed": {0}}
    again = {"added": tag["added"] | {adder}, "removed": tag["removed"]}
    assert bool(again["added"] - again["removed"]) == (adder == 1)


def test_the_index_that_is_written_back_loses_an_update_and_the_set_does_not():
    index, members = TYPES["subkey_index"], TYPES["or_set"]
    a = index.write(index.bottom(), 0, 0, True, 5)
    b = index.write(index.bottom(), 1, 2, True, 5)
    assert index.value(index.join(a, b)).tolist() == [False, False, True]
    a = members.write(members.bottom(), 0, 0, True)
    b = members.write(members.bottom(), 1, 2, True)
    assert members.value(members.join(a, b)).tolist() == [True, False, True]


def test_version_vectors_tell_causes():
    vectors = np.array([[1, 0, 2], [1, 1, 2], [1, 0, 2], [0, 3, 0]])
    assert p2p.causality(vectors[[0, 0, 1, 0]], vectors[[2, 1, 0, 3]]).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="same writers"):
        p2p.causality(vectors, vectors[:, :2])
