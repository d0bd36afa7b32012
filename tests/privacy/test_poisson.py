"""Poisson samples: their law, their places, and runs on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from tasks import assert_trees_close, assert_trees_equal, regression, softmax_loss

import dflax as dx

KEY = jax.random.key(0)
TASK = regression(clients=4, examples=80)
SIZES = np.asarray(TASK.partition.sizes)


def drawn(probability, places, rounds, steps=2, **options):
    """`[T, n, K, B]` example numbers and `[T]` how many were dropped."""
    sampled = dx.privacy.poisson_sampled(TASK.partition, probability)
    source = dx.Federation(TASK.data, sampled, batch_size=places, local_steps=steps, **options)

    def one(index):
        round = source.draw(KEY, index)
        return round.assignments.minibatches, round.counted["examples_dropped"]

    return jax.device_get(jax.jit(jax.vmap(one))(jnp.arange(rounds)))


@pytest.mark.parametrize("replacement", [False, True])
def test_every_example_is_in_by_its_own_chance(replacement):
    rows, dropped = drawn(0.3, int(SIZES.max()), 400, replacement=replacement)
    owned = [set(client.tolist()) for client in TASK.partition.as_lists()]
    inside = np.zeros((400, 2, 80))
    for client in range(4):
        mine = rows[:, client]
        assert set(mine[mine >= 0].tolist()) <= owned[client]
        for t, k in np.ndindex(400, 2):
            found = mine[t, k][mine[t, k] >= 0]
            assert len(set(found.tolist())) == len(found)
            inside[t, k, found] = 1
    assert not dropped.any()
    counts = inside.sum((0, 1))
    # 80 binomial counts of 800 tosses each: the sum of squares is chi-squared.
    statistic = ((counts - 240) ** 2 / (800 * 0.3 * 0.7)).sum()
    assert stats.chi2.sf(statistic, 80) > 1e-4
    # Independent from minibatch to minibatch, round to round, and example to example.
    flat = inside.reshape(800, 80) - 0.3
    for one, other in ((flat[:-1], flat[1:]), (flat[:-2], flat[2:])):
        assert abs((one * other).sum() / (0.21 * np.sqrt(one.size))) < 4.5
    pairs = flat.T @ flat / 800 / 0.21 * np.sqrt(800)
    assert np.abs(pairs[~np.eye(80, dtype=bool)]).max() < 5


def test_a_sample_that_is_too_large_loses_examples_at_random():
    rows, dropped = drawn(0.9, 5, 300, steps=1)
    assert (rows >= 0).all()
    total = rows.size + dropped.sum()
    expected, deviation = 300 * 0.9 * 80, np.sqrt(300 * 80 * 0.9 * 0.1)
    assert abs(total - expected) < 4.5 * deviation
    for client, mine in enumerate(TASK.partition.as_lists()):
        counts = np.bincount(rows[:, client].reshape(-1), minlength=80)[mine]
        assert stats.chisquare(counts).pvalue > 1e-4


def test_probability_one_takes_all_and_each_client_has_its_own():
    chances = np.array([1.0, 0.5, 0.25, 1.0])
    rows, _ = drawn(chances, int(SIZES.max()), 200)
    found = (rows >= 0).sum(-1)
    assert (found[:, 0] == SIZES[0]).all()
    assert (found[:, 3] == SIZES[3]).all()
    np.testing.assert_allclose(found.mean((0, 2)) / SIZES, chances, atol=0.05)


def test_places_hold_a_sample():
    places = dx.privacy.places(TASK.partition, 0.3)
    assert SIZES.max() * 0.3 < places <= SIZES.max()
    assert stats.binom.sf(dx.privacy.places(TASK.partition, 0.1), SIZES.max(), 0.1) < 1e-6


def test_empty_places_are_masked_and_nobody_else_pays():
    sampled = dx.privacy.poisson_sampled(TASK.partition, 0.5)
    source = dx.Federation(TASK.data, sampled, batch_size=8, local_steps=1)
    batch = source.data.fetch(jnp.array([3, -1, 0]))
    np.testing.assert_array_equal(batch.mask, [1, 0, 1])
    np.testing.assert_array_equal(batch.inputs[1], TASK.data.inputs[0])
    assert TASK.data.fetch(jnp.array([3])).mask is None
    assert source.replace(batch_size=4).data.masked


def test_plain_methods_take_the_mean_over_who_is_there(tmp_path):
    """One step of FedSGD on samples, against NumPy; the same after a checkpoint."""
    sampled = dx.privacy.poisson_sampled(TASK.partition, 0.5)
    source = dx.Federation(TASK.data, sampled, batch_size=int(SIZES.max()), local_steps=1)
    algorithm = dx.server.fedavg(softmax_loss, optax.sgd(1.0))
    start = algorithm.init(KEY, TASK.params)
    after, _ = dx.run(algorithm, start, source, rounds=1, key=KEY)
    rows = np.asarray(source.draw(KEY, 0).assignments.minibatches)[:, 0]
    inputs, labels = np.asarray(TASK.data.inputs, float), np.asarray(TASK.data.labels)
    wanted = np.zeros((5, 3))
    for own, size in zip(rows, SIZES, strict=True):
        mine = own[own >= 0]
        wanted -= inputs[mine].T @ (1 / 3 - np.eye(3)[labels[mine]]) / len(mine) * size / 80
    np.testing.assert_allclose(after.server.params["w"], wanted, atol=1e-6)
    whole, told = dx.run(algorithm, start, source, rounds=4, key=KEY)
    dx.run(algorithm, start, source, rounds=2, key=KEY, checkpoint=tmp_path / "run")
    again, kept = dx.run(algorithm, start, source, rounds=4, key=KEY, checkpoint=tmp_path / "run")
    assert_trees_equal(again, whole)
    assert_trees_close(kept.metrics, told.metrics, rtol=0, atol=0)


def test_a_step_with_a_metric_of_that_name_is_refused():
    sampled = dx.privacy.poisson_sampled(TASK.partition, 0.5)
    source = dx.Federation(TASK.data, sampled, batch_size=8, local_steps=1)
    algorithm = dx.Algorithm(
        lambda key, params: params, lambda state, round: (state, {"examples_dropped": 0.0})
    )
    with pytest.raises(ValueError, match="'examples_dropped' from both"):
        dx.rollout(algorithm, jnp.zeros(1), source, KEY, 1)
