"""Pools: masks over each client's examples, and labels that are bought."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import counter, data

PARTITION = data.from_indices([np.arange(5), np.arange(5, 8), np.arange(8, 20)])
SIZES = np.array([5, 3, 12])
SEED = counter.seed_of(jax.random.key(0))
LABELS = jnp.arange(20) % 4


def made(labelled=(2, 1, 3), **options):
    return data.pools(PARTITION, np.array(labelled), **options)


def test_pools_hold_the_partition_and_random_labels():
    pools = made(seed=3, capacity=14)
    assert pools.owned.shape == (3, 14)
    np.testing.assert_array_equal(pools.valid.sum(1), SIZES)
    np.testing.assert_array_equal(pools.sizes, [2, 1, 3])
    assert not np.any(pools.labelled & ~pools.valid)
    for rows, own, valid in zip(PARTITION.as_lists(), pools.owned, pools.valid, strict=True):
        np.testing.assert_array_equal(np.sort(own[valid]), np.sort(rows))
    others = made(seed=4, capacity=14)
    assert np.any(others.labelled != pools.labelled)


@pytest.mark.parametrize("replacement", [True, False])
def test_minibatches_are_of_the_pool_alone(replacement):
    pools = made()
    clients = jnp.asarray([2, 0, 1])
    drawn = jax.jit(
        lambda pools: (
            pools.minibatches(SEED, clients, 0, 5, 6, replacement),
            pools.part(pools.unlabelled).minibatches(SEED, clients, 0, 5, 6, replacement),
        )
    )
    # Buying is a change of values: the program is the same.
    later = pools.bought(jnp.ones((3, 12)), jnp.asarray([3, 1, 2]))
    for one in (pools, later):
        for indices, mask in zip(drawn(one), (one.labelled, one.unlabelled), strict=True):
            for row, client in zip(indices, clients, strict=True):
                pool = np.asarray(one.owned[client])[np.asarray(mask[client])]
                if pool.size == 0:
                    assert set(np.unique(row)) == {int(one.owned[client, 0])}
                    continue
                assert set(np.unique(row)) == set(pool)
                if not replacement:
                    counts = np.unique(row, return_counts=True)[1]
                    assert counts.max() - counts.min() <= 1
    assert drawn._cache_size() == 1


def test_the_best_are_bought_and_padding_never():
    pools = made()
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(3, 12))
    scores[~np.asarray(pools.valid)] = np.inf
    scores[np.asarray(pools.labelled)] = np.inf
    budgets = np.array([1, 9, 4])
    after = jax.jit(lambda pools, scores, budgets: pools.bought(scores, budgets))(
        pools, scores, budgets
    )
    bought = np.asarray(after.labelled & ~pools.labelled)
    able = np.asarray(pools.unlabelled)
    assert not np.any(bought & ~able)
    # Clamped where fewer are left.
    np.testing.assert_array_equal(bought.sum(1), np.minimum(budgets, able.sum(1)))
    for client in range(3):
        best = np.sort(scores[client][able[client]])[::-1][: budgets[client]]
        np.testing.assert_array_equal(np.sort(scores[client][bought[client]])[::-1], best)


def test_nan_is_bought_last_and_ties_in_order():
    pools = made((1, 1, 1))
    scores = np.full((3, 12), np.nan)
    places = np.flatnonzero(np.asarray(pools.unlabelled[2]))
    scores[2, places[[1, 4, 7]]] = [0.5, -np.inf, 0.5]
    after = pools.bought(jnp.asarray(scores), 2)
    bought = np.asarray(after.labelled & ~pools.labelled)
    np.testing.assert_array_equal(np.flatnonzero(bought[2]), places[[1, 7]])
    np.testing.assert_array_equal(bought.sum(1), [2, 2, 2])
    assert not np.any(bought & ~np.asarray(pools.unlabelled))


def test_counts_read_known_labels_alone():
    pools = made()
    counts = pools.class_counts(LABELS, 4)
    known = [
        np.asarray(own)[np.asarray(m)] for own, m in zip(pools.owned, pools.labelled, strict=True)
    ]
    expected = [np.bincount(np.asarray(LABELS)[rows], minlength=4) for rows in known]
    np.testing.assert_array_equal(counts, expected)
    others = np.setdiff1d(np.arange(20), np.concatenate(known))
    np.testing.assert_array_equal(pools.class_counts(LABELS.at[others].set(-7), 4), counts)


def test_budgets_are_shares_rounded_up():
    np.testing.assert_array_equal(data.budgets(PARTITION, 0.3), [2, 1, 4])
    np.testing.assert_array_equal(data.budgets(PARTITION, 0.2), [1, 1, 3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: made((2, 4, 3)), "labelled must be at most .* got 4 for client 1, which has 3"),
        (lambda: made((2, 0, 3)), "labelled must be"),
        (lambda: made((2, 3)), "labelled must be"),
        (lambda: made(capacity=11), "capacity must be"),
        (lambda: data.pools([[0]], 1), "partition must be of type Partition"),
        (lambda: data.budgets(PARTITION, 0.0), "share must be"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
