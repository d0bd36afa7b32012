"""Krum after nearest-neighbour mixing, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tasks import assert_trees_close

import dflax as dx
from dflax import aggregation
from dflax.aggregation import Combining
from dflax.aggregation.aggregator import counted_sum

KEY = jax.random.key(0)
M = 11


def exact(rows, faulty):
    """The definition, message by message."""
    count = len(rows)
    faulty = min(faulty, (count - 1) // 2)

    def distances(x):
        return ((x[:, None] - x[None]) ** 2).sum(-1)

    order = np.argsort(distances(rows), axis=1, kind="stable")[:, : max(count - faulty, 1)]
    means = rows[order].mean(1)
    others = max(count - faulty - 2, min(count, 2) - 1)
    scores = np.sort(distances(means), axis=1)[:, 1 : 1 + others].sum(1)
    # Where scores tie, rounding decides.
    return means[scores <= scores.min() * (1 + 1e-12)]


def flat(tree):
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], axis=1)


def messages(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    offset = 100.0
    tree = {"w": offset + rng.standard_normal((M, 3, 2)), "b": rng.standard_normal(M)}
    tree["w"][[1, 7]] += 50
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def combined(faulty, tree, weights):
    rule = aggregation.nnm(aggregation.krum(faulty), faulty)
    return jax.jit(
        lambda tree, weights: rule.apply(tree, weights, rule.init(tree), Combining(KEY))[0]
    )(tree, weights)


@pytest.mark.some(1)
@pytest.mark.parametrize("faulty", [0, 1, 2, 4])
def test_it_is_the_definition_whoever_reports(faulty):
    with jax.enable_x64(True):
        for seed in range(3):
            tree = messages(seed)
            weights = np.random.default_rng(seed).random(M) + 0.1
            weights[[3, 8][:seed]] = 0
            # Absent or not finite: as if it had not arrived.
            rows = np.flatnonzero(weights > 0)
            tree["w"][3] = np.nan if seed else tree["w"][3]
            if seed == 2:
                tree["b"][5] = np.inf
                rows = rows[rows != 5]
            found = combined(faulty, tree, weights)
            expected = exact(flat(tree)[rows], faulty)
            got = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])
            assert np.abs(got - expected).max(1).min() < 1e-10


def test_known_values_and_edges():
    numbers = jnp.asarray([1.0, 2, 3, 4, 100])
    ones = jnp.ones(5)
    assert combined(1, numbers, ones) == 2.5
    assert combined(1, numbers, jnp.zeros(5)) == 0
    assert combined(1, numbers, jnp.asarray([0.0, 0, 0, 1, 0])) == 4
    assert combined(1, numbers, jnp.asarray([0.0, 1, 0, 1, 0])) == 3


def test_attackers_do_not_move_it():
    tree = messages(0)
    honest = np.setdiff1d(np.arange(M), [1, 7])
    for attack in (1e3, 1e30, np.nan):
        tree["w"][[1, 7]] = attack
        found = combined(2, jax.tree.map(lambda x: x.astype(np.float32), tree), jnp.ones(M))
        assert np.abs(found["w"] - tree["w"][honest].mean(0)).max() < 1.5


@pytest.mark.slow
def test_on_eight_devices_and_in_a_round():
    tree = jax.tree.map(lambda x: x[:8].astype(np.float32), messages(1))
    expected = combined(1, tree, jnp.ones(8))
    mesh = dx.client_mesh()
    with jax.set_mesh(mesh):
        spec = NamedSharding(mesh, PartitionSpec("clients"))
        found = combined(1, jax.device_put(tree, spec), jnp.ones(8))
    assert_trees_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_blocks_it_is_made_of():
    """Means of nearest messages, and their distances from those of the messages alone."""
    with jax.enable_x64(True):
        rows = flat(messages(2))
        between = np.array(aggregation.squared_distances(rows))
        for count in (1, 4, M):
            mixing = aggregation.nearest(between, count)
            order = np.argsort(between, axis=1, kind="stable")[:, :count]
            np.testing.assert_allclose(mixing @ rows, rows[order].mean(1), rtol=1e-12)
            means = rows[order].mean(1)
            found = aggregation.distances_of_mixtures(between, mixing)
            expected = ((means[:, None] - means[None]) ** 2).sum(-1)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    twins = jnp.zeros((3, 3))
    np.testing.assert_array_equal(aggregation.nearest(twins, 1), np.eye(3))
    far = jnp.asarray([[0, 1, jnp.inf], [1, 0, jnp.inf], [jnp.inf, jnp.inf, 0]])
    halves = jnp.asarray([[0.5, 0.5, 0], [0, 0, 1], [0, 1, 0]])
    expected = [[0, jnp.inf, 0.25], [jnp.inf, 0, jnp.inf], [0.25, jnp.inf, 0]]
    np.testing.assert_allclose(aggregation.distances_of_mixtures(far, halves), expected)
    kept = aggregation.counted_mean(jnp.asarray([jnp.nan, 2.0, 4.0]), jnp.asarray([0.0, 1, 3]))
    assert kept == 3.5


def test_who_does_not_count_may_hold_anything():
    rows = np.random.default_rng(0).normal(size=(M, 5)).astype(np.float32)
    coefficients, present = np.array([1.0, -2.0, 0.0, 0.5, 0.0, 0.0, 3.0]), np.ones(M, bool)
    coefficients = np.resize(coefficients, M)
    present[coefficients == 0] = False
    total = jax.jit(counted_sum)
    for junk in (0.0, np.nan, np.inf, -np.inf, 3e38):
        spoilt = np.where(present[:, None], rows, np.float32(junk))
        wanted = coefficients[present] @ rows[present].astype(np.float64)
        np.testing.assert_allclose(total(spoilt, coefficients), wanted, rtol=1e-5, atol=1e-5)
    # Who counts is heard, whatever it holds; with a coefficient of 0 as well.
    rows[0, 1], rows[2, 3] = np.nan, np.inf
    found = total(rows, coefficients, present | (np.arange(M) == 2))
    assert np.isnan(found).tolist() == [False, True, False, True, False]


def test_a_sum_of_those_who_count_is_one_exchange():
    """A second one, without those who hold NaNs, is each device's own."""
    mesh, devices = dx.client_mesh(), jax.device_count()
    rng = np.random.default_rng(1)
    rows = {"a": rng.normal(size=(2 * devices, 40)), "b": rng.normal(size=(2 * devices, 3, 5))}
    rows = jax.tree.map(lambda leaf: leaf.astype(np.float32), rows)
    coefficients = rng.normal(size=2 * devices).astype(np.float32)
    coefficients[3] = 0
    wanted = jax.tree.map(lambda leaf: np.tensordot(coefficients, leaf, 1), rows)
    weights = np.abs(coefficients)
    means = jax.tree.map(lambda leaf: np.average(leaf, axis=0, weights=weights), rows)
    layout = jax.NamedSharding(mesh, jax.P("clients"))
    with jax.set_mesh(mesh):
        total = jax.jit(counted_sum).lower(jax.device_put(rows, layout), coefficients).compile()
        mean = jax.jit(aggregation.counted_mean)
        for junk in (1.0, np.nan):
            rows["b"][3, 1] = junk
            placed = jax.device_put(rows, layout)
            assert_trees_close(total(placed, coefficients), wanted, rtol=1e-4, atol=1e-5)
            assert_trees_close(mean(placed, weights), means, rtol=1e-4, atol=1e-5)
    exchanged = [c for c in dx.profile.collectives(total) if c.bytes > 8]
    assert sum(c.bytes for c in exchanged) == (4 * 55 if devices > 1 else 0)
    assert {c.kind for c in exchanged} <= {"all-reduce"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aggregation.nearest(jnp.zeros((2, 3)), 1), "distances must"),
        (lambda: aggregation.nearest(jnp.zeros((3, 3)), 4), "count must"),
        (
            lambda: aggregation.distances_of_mixtures(jnp.zeros((3, 3)), jnp.ones((2, 2))),
            "mixing must",
        ),
        (lambda: aggregation.counted_mean(jnp.ones(3), jnp.ones((3, 1))), "weights must"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
