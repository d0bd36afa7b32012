import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dflax.data import Partition, from_indices
from dflax.data.partition import coprime_strides

SEED = jnp.array([123, 456], jnp.uint32)


def contiguous(sizes):
    ends = np.cumsum(sizes)
    return from_indices([np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)])


# One program per shape instead of one per operation.
minibatches = jax.jit(Partition.minibatches, static_argnums=(4, 5, 6))


def stream(partition, client, start, count, seed=SEED, replacement=False):
    """`count` examples of one client's stream, on the host."""
    batches = minibatches(
        partition, seed, jnp.array([client]), jnp.int32(start), 1, count, replacement
    )
    return np.asarray(batches).reshape(-1)


# Few distinct lengths, so that few programs are compiled.
MIXED = contiguous([1, 2, 3, 7, 16, 31, 64, 97, 100, 128])


@settings(max_examples=60, deadline=None)
@given(
    client=st.integers(0, MIXED.clients - 1),
    epoch=st.integers(0, 5_000),
    words=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_an_epoch_visits_every_example_once(client, epoch, words):
    size = int(MIXED.sizes[client])
    seed = jnp.array(words, jnp.uint32)
    seen = stream(MIXED, client, epoch * size, 128, seed)[:size]
    np.testing.assert_array_equal(
        np.sort(seen), MIXED.as_lists()[client][np.argsort(MIXED.as_lists()[client])]
    )


@pytest.mark.parametrize("size", [65_536, 100_003, 65_521])
def test_large_clients_visit_every_example_once_too(size):
    partition = contiguous([size, 5])
    for epoch in (0, 3):
        seen = stream(partition, 0, epoch * size, size)
        np.testing.assert_array_equal(np.sort(seen), np.arange(size))


def test_rounds_continue_the_epoch():
    partition = contiguous([60, 23])
    rounds = [stream(partition, 0, start, 20) for start in (0, 20, 40)]
    np.testing.assert_array_equal(np.concatenate(rounds), stream(partition, 0, 0, 60))
    np.testing.assert_array_equal(np.sort(np.concatenate(rounds)), np.arange(60))


def test_a_batch_across_epochs_is_the_end_of_one_and_the_start_of_the_next():
    partition = contiguous([10])
    across = stream(partition, 0, 7, 6)
    np.testing.assert_array_equal(across[:3], stream(partition, 0, 0, 10)[7:])
    np.testing.assert_array_equal(across[3:], stream(partition, 0, 10, 10)[:3])


def test_orders_differ_between_epochs_clients_and_seeds():
    partition = contiguous([500, 500])
    base = stream(partition, 0, 0, 500)
    others = [
        stream(partition, 0, 500, 500),
        stream(partition, 1, 0, 500) - 500,
        stream(partition, 0, 0, 500, jnp.array([123, 457], jnp.uint32)),
        stream(partition, 0, 0, 500, jnp.array([124, 456], jnp.uint32)),
    ]
    # Two random permutations of 500 agree in one place on average.
    assert all(np.mean(base == other) < 0.05 for other in others)


def testcoprime_strides_and_products_fit_32_bits():
    for sizes in ([2**24], [2**24 - 3, 5], [100_003, 60_000], [1], [2, 3, 5, 7, 11, 13]):
        strides = coprime_strides(np.array(sizes))
        assert np.all(np.gcd.outer(strides, sizes) == 1)
        reduced = strides[:, None] % np.array(sizes)
        assert np.all(reduced * (np.array(sizes) - 1) + np.array(sizes) < 2**32)


@pytest.mark.parametrize("size", [2**24, 2**24 - 3])
def test_the_walk_of_the_largest_clients_is_that_of_python_integers(size):
    strides = coprime_strides(np.array([size]))
    partition = Partition(
        jnp.arange(size, dtype=jnp.int32),
        jnp.zeros(1, jnp.int32),
        jnp.array([size], jnp.int32),
        jnp.asarray(strides, jnp.uint32),
    )
    seen = stream(partition, 0, 0, 128).astype(object)
    far = stream(partition, 0, size - 64, 64).astype(object)
    first = int(seen[0])
    stride = (int(seen[1]) - first) % size
    assert stride in {int(s) % size for s in strides}
    assert [(first + stride * rank) % size for rank in range(128)] == list(seen)
    assert [(first + stride * rank) % size for rank in range(size - 64, size)] == list(far)


def test_with_replacement_is_uniform():
    partition = contiguous([40, 10])
    draws = stream(partition, 0, 0, 20_000, replacement=True)
    counts = np.bincount(draws, minlength=50)
    assert counts[40:].sum() == 0
    # Chi-square with 39 degrees of freedom: mean 39, the 99.99 % point is 82.
    assert 15 < ((counts[:40] - 500) ** 2 / 500).sum() < 82


def test_draws_with_replacement_are_uncorrelated():
    draws = stream(contiguous([1_000]), 0, 0, 20_000, replacement=True).astype(np.float64)
    for lag in (1, 2, 32):
        assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 0.03


def test_consecutive_epochs_are_uncorrelated():
    partition = contiguous([1_000])
    epochs = [stream(partition, 0, 1_000 * e, 1_000) for e in range(20)]
    correlations = np.corrcoef(np.array(epochs))[np.triu_indices(20, 1)]
    assert abs(correlations.mean()) < 0.02
    assert correlations.std() < 0.1


def test_first_examples_of_epochs_are_uniform():
    partition = contiguous([10])
    firsts = [stream(partition, 0, 10 * e, 128)[0] for e in range(400)]
    counts = np.bincount(firsts, minlength=10)
    # Chi-square with 9 degrees of freedom: the 99.99 % point is 34.
    assert ((counts - 40) ** 2 / 40).sum() < 34


@pytest.mark.slow
def test_jit_and_vmap_give_the_same():
    args = (SEED, jnp.array([2, 5, 9]), jnp.int32(11), 3, 4, False)
    plain = MIXED.minibatches(*args)
    compiled = jax.jit(
        lambda partition, seed, clients, start: partition.minibatches(
            seed, clients, start, 3, 4, False
        )
    )(MIXED, *args[:3])
    np.testing.assert_array_equal(plain, compiled)
    assert plain.shape == (3, 3, 4)
    assert plain.dtype == jnp.int32
    seeds = jnp.stack([SEED, SEED + 1])
    mapped = jax.vmap(lambda seed: MIXED.minibatches(seed, *args[1:]))(seeds)
    np.testing.assert_array_equal(mapped[0], plain)
    np.testing.assert_array_equal(mapped[1], MIXED.minibatches(seeds[1], *args[1:]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=8))
def test_lists_round_trip(owned):
    partition = from_indices([np.array(rows) for rows in owned], examples=100)
    assert [sorted(rows.tolist()) for rows in partition.as_lists()] == [sorted(o) for o in owned]
    assert partition.clients == len(owned)


def test_the_seed_of_from_indices_sets_the_order():
    owned = [np.arange(100)]
    first, again, other = (from_indices(owned, seed=seed).indices for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("owned", "options", "message"),
    [
        ([], {}, "at least one client"),
        ([np.array([0]), np.array([], int)], {}, "client 1"),
        ([np.array([-1])], {}, "non-negative"),
        ([np.array([3])], {"examples": 3}, r"\[0, 3\)"),
        ([np.zeros(2**24 + 1, np.int8)], {}, "at most 16777216"),
    ],
)
def test_from_indices_refuses(owned, options, message):
    with pytest.raises(ValueError, match=message):
        from_indices(owned, **options)


@pytest.mark.parametrize(
    ("owned", "options", "message"),
    [
        ([[0.0, 1.5]], {}, r"owned\[0\] must hold integers, got dtype float64"),
        ([[0], [True, False]], {}, r"owned\[1\] must hold integers, got dtype bool.*flatnonzero"),
        (
            [[[0, 1], [2, 3]]],
            {},
            r"owned\[0\] must be one list of example numbers, got shape \(2, 2\)",
        ),
        ([0, 1], {}, r"owned\[0\] must be one list"),
        (3, {}, "owned must be of type Sequence.*, not int, got 3"),
        ([[0]], {"seed": "a"}, "seed must be an integer >= 0, got 'a'"),
        ([[0]], {"examples": 1.5}, "examples must be an integer >= 1, got 1.5"),
    ],
)
def test_from_indices_takes_lists_of_integers_only(owned, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_indices(owned, **options)
