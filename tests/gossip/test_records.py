"""Records of others: what is drawn to be passed on, what is stored, what gives way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax.gossip.rules.letters import addresses
from dflax.gossip.rules.sybilwall.records import (
    About,
    Incoming,
    Records,
    drawn,
    none_known,
    place_of,
    stored,
)


def records(*rows, places=6):
    """Of (who, time, distance, source), with the row's number + 1 as the history."""
    table = np.full((places, 4), -1, np.int32)
    table[:, 2] = 0
    if rows:
        table[: len(rows)] = rows
    about = About(*(jnp.asarray(column) for column in table.T))
    return Records(about, {"x": jnp.arange(1.0, places + 1)})


@functools.partial(jax.jit, static_argnames="first_hand")
def store(held, new, arrives, first_hand):
    return stored(held, Incoming(new, arrives, first_hand))


def told(found):
    """The set of what is known: (who, time, distance, source, history)."""
    columns = [*found.about, found.histories["x"]]
    known = np.asarray(found.known)
    return {tuple(map(float, row)) for row in np.stack(columns, 1)[known]}


def test_the_law_of_what_is_passed_on():
    """Distances 1, 2, 3 of one record each: 1 : 0.44933 : 0.20190, a chi-square of 1e5 draws."""
    held = records((4, 0, 1, -1), (5, 0, 2, 4), (6, 0, 3, 4))
    keys = jax.random.split(jax.random.key(0), 100_000)
    places, there = jax.jit(jax.vmap(lambda key: drawn(held, jnp.int32(9), 0.8, key)))(keys)
    assert there.all()
    law = np.array([1, 0.44933, 0.20190])
    expected = 1e5 * law / law.sum()
    counts = np.bincount(places, minlength=3)
    assert len(counts) == 3
    # The 0.999 quantile of two degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 13.8


@pytest.mark.parametrize(
    ("reader", "possible"),
    [(9, {0, 1, 2}), (4, {2}), (6, {0, 1})],
    ids=["a stranger", "who passed one on and is known", "who is known"],
)
def test_nothing_goes_back_to_whom_it_is_about_or_came_from(reader, possible):
    held = records((4, 0, 1, -1), (5, 0, 2, 4), (6, 0, 3, 7))
    keys = jax.random.split(jax.random.key(1), 200)
    places, there = jax.vmap(lambda key: drawn(held, jnp.int32(reader), 0.1, key))(keys)
    assert there.all()
    assert set(np.asarray(places).tolist()) == possible


def test_who_knows_nothing_of_use_passes_nothing_on():
    for held, reader in ((records(), 1), (records((1, 0, 1, -1), (2, 0, 2, 1)), 1)):
        _, there = drawn(held, jnp.int32(reader), 0.8, jax.random.key(0))
        assert not there


def incoming(*rows):
    table = np.array(rows, np.int32)
    about = About(*(jnp.asarray(column) for column in table.T))
    return Records(about, {"x": 10.0 * jnp.arange(1.0, len(rows) + 1)})


def test_what_is_passed_on_never_replaces_first_hand_and_only_what_is_older():
    held = records((1, 3, 1, -1), (2, 3, 2, 1), (3, 3, 4, 1))
    new = incoming((1, 9, 2, 7), (2, 3, 2, 7), (3, 4, 5, 7), (5, 0, 3, 7), (6, 1, 2, 7))
    arrives = jnp.asarray([True, True, True, True, False])
    found = store(held, new, arrives, first_hand=False)
    assert told(found) == {(1, 3, 1, -1, 1), (2, 3, 2, 1, 2), (3, 4, 5, 7, 30), (5, 0, 3, 7, 40)}


def test_of_two_that_come_at_once_the_newer_stays_and_of_equal_ones_the_first():
    new = incoming((1, 2, 2, 5), (1, 4, 3, 6), (2, 4, 2, 5), (2, 4, 2, 6))
    found = store(records(), new, jnp.ones(4, bool), first_hand=False)
    assert told(found) == {(1, 4, 3, 6, 20), (2, 4, 2, 5, 30)}


def test_first_hand_replaces_everything():
    held = records((1, 3, 1, -1), (2, 9, 2, 1))
    new = incoming((1, 4, 1, -1), (2, 4, 1, -1), (3, 4, 1, -1))
    found = store(held, new, jnp.asarray([True, True, False]), first_hand=True)
    assert told(found) == {(1, 4, 1, -1, 10), (2, 4, 1, -1, 20)}


def test_the_oldest_and_farthest_gives_way():
    held = records((1, 0, 1, -1), (2, 2, 2, 1), (3, 1, 2, 1), (4, 1, 3, 1), places=4)
    one = jnp.ones(1, bool)
    found = store(held, incoming((5, 0, 2, 1)), one, first_hand=False)
    assert {row[0] for row in told(found)} == {1, 2, 3, 5}
    # Records at first hand give way to first hand alone, the oldest first.
    full = records((1, 0, 1, -1), (2, 1, 1, -1), places=2)
    assert told(store(full, incoming((5, 7, 2, 1)), one, first_hand=False)) == told(full)
    found = store(full, incoming((5, 7, 1, -1)), one, first_hand=True)
    assert {row[0] for row in told(found)} == {2, 5}


def test_where_a_record_lies():
    held = records((4, 0, 1, -1), (5, 0, 2, 4))
    places, known = place_of(held.about, jnp.asarray([5, 4, 6, -1]))
    np.testing.assert_array_equal(known, [True, True, False, False])
    np.testing.assert_array_equal(places[:2], [1, 0])
    assert not none_known({"x": jnp.float32(0)}, 3).known.any()


def test_letters_lie_where_the_sender_put_them():
    """0 and 1 hear each other, 2 hears 0 without being heard, and 1 and 2 each other; 3 is absent."""
    neighbours = jnp.asarray([[1, 3], [0, 2], [0, 1], [0, 3]])
    weights = jnp.asarray([[0.3, 0.0], [0.3, 0.3], [0.3, 0.3], [0.0, 0.0]])
    places, comes = jax.jit(addresses)(neighbours, weights)
    np.testing.assert_array_equal(comes, [[1, 0], [1, 1], [0, 1], [0, 0]])
    assert (places[0, 0], places[1, 0], places[1, 1], places[2, 1]) == (0, 0, 1, 1)
