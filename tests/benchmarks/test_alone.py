import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import alone
from dflax.robots.flooding import hop


def test_steps_in_turn_are_so_many():
    twice = alone.repeated(lambda state, more: 2 * state + more, 3)
    assert int(twice(jnp.int32(1), jnp.int32(1))) == 15


@pytest.mark.parametrize("drawn", [False, True])
def test_counts_are_of_all_users_with_a_value(drawn):
    values = jnp.asarray([0, 1, 1, 2, 5, 5, 5, 8])
    counts = alone.counted(jax.random.key(0), values, 6, drawn)
    if drawn:
        # A first bit moves a user within a pair of values.
        counts = counts.reshape(3, 2).sum(1)
        assert counts.tolist() == [3, 1, 3]
    else:
        assert counts.tolist() == [1, 2, 1, 0, 0, 3]


def test_a_hop_is_that_of_flooding_where_all_hear_as_many():
    rng = np.random.default_rng(0)
    links = np.stack([np.roll(np.isin(np.arange(6), (1, 3)), i) for i in range(6)])
    heard = alone.heard_by_each(links)
    assert heard.shape == (6, 2)
    stamps = jnp.asarray(rng.integers(-50, 50, (6, 4)), jnp.int32)
    older = stamps - 100
    newest = jnp.maximum(stamps, hop(jnp.asarray(links), stamps.astype(jnp.int16)))
    found = alone.hopped((stamps, older), heard)
    assert (found[0] == newest).all()
    assert (found[1] == newest).all()


def test_all_together_hear_no_more_than_there_are_links():
    links = np.array([[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], bool)
    heard = alone.heard_by_each(links)
    assert heard.size <= links.sum()
    assert all(links[i, j] for i, row in enumerate(heard) for j in row)
    assert alone.heard_by_each(np.zeros((3, 3), bool)).shape == (3, 1)


def test_each_model_runs_the_queries_in_turn():
    step = alone.executed(lambda model, x: model * x, 2)
    models, inputs = jnp.asarray([1.0, 10.0]), jnp.asarray([[1.0], [2.0]])
    # One node has all the weight: the members add twice its number.
    weights = jnp.asarray([0.0, 0.0, 0.0, 1.0])
    state = jnp.int32(0), jnp.float32(0)
    totals = []
    for _ in range(3):
        state = step(state, models, inputs, weights)
        totals.append(float(state[1]) - 6)
    assert totals == pytest.approx([11.0, 22.0, 11.0])


def test_each_round_draws_its_own_comparisons_and_adds_its_strengths():
    step = alone.ranked(5, 40, 60)
    number, total = step((jnp.int32(0), jnp.zeros(5)), jax.random.key(0))
    assert int(number) == 1
    # Strengths have the geometric mean 1.
    assert float(jnp.log(total).sum()) == pytest.approx(0.0, abs=1e-4)
    once = step((jnp.int32(1), total), jax.random.key(0))[1] - total
    assert float(jnp.abs(once - total).max()) > 1e-3


def test_answers_are_the_rows_of_the_asked():
    known = jnp.asarray([[1, 2, 7], [4, 0, 7], [2, 6, 7]], jnp.uint32)
    far = jnp.full((2, 2), 2**32 - 1, jnp.uint32)
    asked = jnp.asarray([[0, 1], [1, 2]])
    found = alone.answered(far, known, jnp.asarray([0, 4], jnp.uint32), asked)
    assert found.tolist() == [[1, 0], [0, 2]]


def test_a_join_is_of_ones_own_the_called_and_the_caller():
    counters = jnp.eye(4, dtype=jnp.int32)
    called = np.roll(np.arange(4), -1)
    after = alone.joined(counters, called, np.argsort(called))
    assert after.tolist() == [[1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]]


def test_every_holder_gives_one_block_and_every_peer_takes_one():
    have = jnp.asarray([[0b111, 0b1], [0, 0], [0, 0b10], [0, 0]], jnp.uint32)
    after = alone.fetched(have)
    # The first peer takes what the third alone has; the second gets the first's lowest.
    assert after.tolist() == [[0b111, 0b11], [0b1, 0], [0, 0b10], [0, 0]]
    everything = jnp.full((3, 2), 2**32 - 1, jnp.uint32)
    assert (alone.fetched(everything) == everything).all()
