import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dflax import data
from dflax.data.laws import dirichlet_rows
from dflax.data.partitioners import _raise_floor

LABELS = np.random.default_rng(0).integers(0, 10, 3_000)

DEALS = {
    "iid": lambda labels, n, seed: data.iid(labels, n, seed),
    "dirichlet": lambda labels, n, seed: data.dirichlet(labels, n, 0.3, seed),
    "shards": lambda labels, n, seed: data.label_shards(labels, n, 1, seed),
    "quantity": lambda labels, n, seed: data.quantity_skew(labels, n, 0.3, seed),
    "groups": lambda labels, n, seed: data.by_group(labels, seed),
}


def owned_once(partition, count):
    np.testing.assert_array_equal(np.sort(partition.indices), np.arange(count))


@settings(max_examples=50, deadline=None)
@given(
    deal=st.sampled_from(sorted(DEALS)),
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    portion=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
)
def test_every_example_is_owned_once(deal, labels, portion, seed):
    clients = max(1, round(portion * len(labels)))
    partition = DEALS[deal](np.array(labels), clients, seed)
    owned_once(partition, len(labels))
    assert np.min(partition.sizes) >= 1


@pytest.mark.parametrize("deal", sorted(DEALS))
def test_the_seed_tells(deal):
    first, again, other = (DEALS[deal](LABELS, 10, seed).indices for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_iid_sizes_differ_by_one_at_most():
    sizes = np.asarray(data.iid(1_003, 10).sizes)
    assert sorted(sizes.tolist()) == [100] * 7 + [101] * 3


def test_iid_mixes_classes():
    shares = data.label_distribution(data.iid(LABELS, 5, 1), LABELS)
    np.testing.assert_allclose(shares, 0.1, atol=0.05)


@settings(max_examples=30, deadline=None)
@given(
    alpha=st.floats(1e-4, 1e3),
    clients=st.integers(1, 40),
    min_size=st.integers(1, 10),
    seed=st.integers(0, 100),
)
def test_the_floor_always_holds(alpha, clients, min_size, seed):
    labels = LABELS[:400]
    for deal in (data.dirichlet, data.quantity_skew):
        partition = deal(labels, clients, alpha, seed, min_size)
        owned_once(partition, 400)
        assert np.min(partition.sizes) >= min_size


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda s: sum(s) >= len(s)),
    seed=st.integers(0, 100),
)
def test_raising_the_floor_takes_from_the_largest_and_moves_no_more_than_needed(sizes, seed):
    clients, floor = len(sizes), sum(sizes) // len(sizes)
    owner = np.repeat(np.arange(clients), sizes)
    raised = _raise_floor(owner, clients, floor, np.random.default_rng(seed))
    before, after = np.array(sizes), np.bincount(raised, minlength=clients)
    assert after.min() >= floor
    assert (raised != owner).sum() == np.maximum(floor - before, 0).sum()
    donors = after < before
    if donors.any():
        assert after.max() <= after[donors].min() + 1


def test_dirichlet_goes_from_even_to_one_class():
    even = data.label_distribution(data.dirichlet(LABELS, 5, 1e6), LABELS)
    np.testing.assert_allclose(even, np.bincount(LABELS) / 3_000 * np.ones((5, 1)), atol=0.01)
    counts = data.class_counts(data.dirichlet(LABELS, 5, 1e-3), LABELS)
    # Each class is with one client but for the few examples that fill the floor.
    assert np.all(counts.max(0) / counts.sum(0) > 0.95)


def test_dirichlet_shares_have_the_right_mean_and_variance():
    """A share of Dirichlet(a 1_n) has mean 1/n and variance (n - 1) / (n^2 (n a + 1))."""
    generator = np.random.default_rng(0)
    for alpha in (0.05, 0.5, 5.0):
        shares = dirichlet_rows(generator, alpha, (20_000, 4))
        np.testing.assert_allclose(shares.sum(1), 1.0)
        np.testing.assert_allclose(shares.mean(0), 0.25, atol=0.02)
        np.testing.assert_allclose(shares.var(0), 3 / (16 * (4 * alpha + 1)), rtol=0.06)
    tiny = dirichlet_rows(generator, 1e-6, (100, 50))
    np.testing.assert_allclose(tiny.max(1), 1.0)


def test_dirichlet_follows_the_class_shares_in_the_mean():
    counts = [data.class_counts(data.dirichlet(LABELS, 4, 1.0, s), LABELS, 10) for s in range(200)]
    np.testing.assert_allclose(np.mean(counts, 0) / np.bincount(LABELS), 0.25, atol=0.06)


def test_shards_bound_the_classes_of_a_client():
    labels = np.repeat(np.arange(10), 60)
    for shards in (1, 2, 3):
        partition = data.label_shards(labels, 10, shards, seed=2)
        assert (data.class_counts(partition, labels) > 0).sum(1).max() <= shards
        np.testing.assert_array_equal(partition.sizes, 60)


def test_quantity_skew_keeps_the_mix():
    partition = data.quantity_skew(LABELS, 4, 0.5, seed=1, min_size=200)
    shares = data.label_distribution(partition, LABELS)
    np.testing.assert_allclose(shares, np.bincount(LABELS) / 3_000 * np.ones((4, 1)), atol=0.1)
    assert np.ptp(partition.sizes) > 200


def test_groups_come_in_sorted_order():
    groups = np.array(["b", "a", "c", "a", "b", "a"])
    lists = data.by_group(groups).as_lists()
    assert [sorted(rows.tolist()) for rows in lists] == [[1, 3, 5], [0, 4], [2]]


def test_sixty_thousand_examples_on_ten_thousand_clients():
    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    for partition in (data.dirichlet(labels, 10_000, 0.1), data.label_shards(labels, 10_000, 2)):
        owned_once(partition, 60_000)
        assert partition.clients == 10_000


def test_laws_have_rows_of_mass_one_and_cover_the_classes():
    laws = data.dirichlet_laws(11, 16, 10, 0.1, min_mass=0.03)
    assert laws.shape == (16, 10)
    np.testing.assert_allclose(laws.sum(1), 1.0)
    assert laws.mean(0).min() >= 0.03
    keyed = data.dirichlet_laws(jax.random.key(3), 16, 10, 0.1)
    np.testing.assert_array_equal(keyed, data.dirichlet_laws(jax.random.key(3), 16, 10, 0.1))
    assert not np.array_equal(keyed, data.dirichlet_laws(jax.random.key(4), 16, 10, 0.1))
    owned = data.resample(LABELS, laws)
    np.testing.assert_allclose(data.label_distribution(owned), laws, atol=1e-6)


def test_train_test_per_client_splits_each_client():
    partition = data.dirichlet(LABELS, 20, 0.2, min_size=2)
    train, test = data.train_test_per_client(partition, 0.25, seed=1)
    for whole, first, second in zip(
        partition.as_lists(), train.as_lists(), test.as_lists(), strict=True
    ):
        np.testing.assert_array_equal(np.sort(whole), np.sort(np.concatenate([first, second])))
        assert len(second) == np.clip(np.rint(0.25 * len(whole)), 1, len(whole) - 1)


def test_class_counts_by_hand():
    partition = data.from_indices([np.array([0, 1, 4]), np.array([2]), np.array([3, 1])])
    counts = data.class_counts(partition, np.array([0, 2, 1, 1, 0]), classes=4)
    assert counts.tolist() == [[2, 0, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0]]


PARTITION = data.iid(10, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: data.iid(5, 6), ValueError, "clients=6"),
        (lambda: data.iid(5.0, 2), TypeError, "examples"),
        (lambda: data.iid(5, 0), ValueError, "clients"),
        (lambda: data.iid(5, 2, seed=-1), ValueError, "seed"),
        (lambda: data.dirichlet(LABELS, 10, 0.0), ValueError, "alpha"),
        (lambda: data.dirichlet(LABELS, 10, 1.0, min_size=301), ValueError, "min_size=301"),
        (lambda: data.dirichlet(LABELS, 10, 1.0, min_size=0), ValueError, "min_size"),
        (lambda: data.dirichlet(LABELS - 1, 10, 1.0), ValueError, "got -1"),
        (lambda: data.dirichlet(LABELS * 1.0, 10, 1.0), TypeError, "float64"),
        (lambda: data.dirichlet(LABELS[None], 10, 1.0), ValueError, r"shape \[N\]"),
        (lambda: data.label_shards(LABELS, 1_000, 4), ValueError, "shards_per_client=4"),
        (lambda: data.by_group(np.zeros((2, 2))), ValueError, "groups"),
        (lambda: data.dirichlet_laws(0, 4, 10, 0.1, 0.1), ValueError, "min_mass"),
        (lambda: data.dirichlet_laws(0, 2, 10, 0.01, 0.09), ValueError, "reachable"),
        (lambda: data.dirichlet_laws(0.5, 2, 10, 1.0), TypeError, "seed"),
        (lambda: data.train_test_per_client(data.iid(3, 2), 0.5), ValueError, "at least 2"),
        (lambda: data.train_test_per_client(PARTITION, 1.0), ValueError, "test_fraction"),
        (lambda: data.class_counts(PARTITION, np.zeros(9, int)), ValueError, "9 labels"),
        (lambda: data.class_counts(PARTITION, np.zeros(10)), TypeError, "integers"),
        (lambda: data.class_counts(PARTITION, np.full(10, 3), 3), ValueError, r"\[0, 3\)"),
        (lambda: data.class_counts([1], np.zeros(10, int)), TypeError, "Partition"),
        (lambda: data.label_distribution(PARTITION), ValueError, "labels"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_ids_that_are_nan_and_what_is_no_partition_are_refused():
    with pytest.raises(ValueError, match=r"groups must tell .*, got NaN for 2 of 3"):
        data.by_group(np.array([1.0, np.nan, np.nan]))
    with pytest.raises(ValueError, match=r"groups must tell .*, got NaN for 2 of 4"):
        data.by_group(np.array(["ann", None, float("nan"), "bob"], object))
    with pytest.raises(TypeError, match="groups must be all numbers or all words"):
        data.by_group(np.array(["ann", 3], object))
    with pytest.raises(TypeError, match="partition must be of type Partition, not int, got 3"):
        data.train_test_per_client(3, 0.5)
