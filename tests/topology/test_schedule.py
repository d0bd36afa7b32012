import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import topology

DRAWS = 4000
APART = topology.from_edges(4, np.array([[0, 1], [2, 3]]), disconnected=True)
ONE_WAY = topology.from_edges(
    3, np.array([[0, 1], [1, 2]]), directed=True, disconnected=True, name="one way"
)


def as_dense(drawn):
    if not isinstance(drawn, topology.Slots):
        return drawn
    n = drawn.neighbours.shape[0]
    dense = jnp.diag(1 - drawn.weights.sum(1))
    return dense.at[jnp.arange(n)[:, None], drawn.neighbours].add(drawn.weights)


def draws(schedule, count, index=0):
    keys = jax.random.split(jax.random.key(7), count)
    return np.asarray(
        jax.jit(jax.vmap(lambda k: as_dense(schedule.draw(schedule.tables, k, index))))(keys),
        np.float64,
    )


def off_diagonal(matrices):
    n = matrices.shape[-1]
    return np.where(np.eye(n, dtype=bool), 0, matrices)


def neighbours_mean(n, r):
    others = (np.ones((n, n)) - np.eye(n)) / (n - 1)
    return (1 - r / 2) * np.eye(n) + r / 2 * others


def test_round_robin_meets_everyone_in_turn():
    n = 5
    schedule = topology.round_robin(n)
    matrices = np.concatenate([draws(schedule, 1, index) for index in range(n)])
    for index, matrix in enumerate(matrices):
        shift = np.roll(np.eye(n), index % (n - 1) + 1, axis=0)
        np.testing.assert_allclose(matrix, (np.eye(n) + shift) / 2)
    jumps = topology.round_robin(8, topology.exponential_offsets(8))
    product = np.eye(8)
    for index in range(3):
        product = draws(jumps, 1, index)[0] @ product
    np.testing.assert_allclose(product, np.full((8, 8), 1 / 8))
    with pytest.raises(ValueError, match="offsets must let every node reach every other"):
        topology.round_robin(8, [2, 4])


@pytest.mark.some(2)
@pytest.mark.parametrize("r", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("most", [None, 11])
def test_expectation_of_random_neighbours(r, most):
    n = 12
    matrices = draws(topology.random_neighbours(n, r, most=most), DRAWS)
    assert np.abs(matrices.mean(0) - neighbours_mean(n, r)).max() < 0.02
    np.testing.assert_allclose(matrices.sum(-1), 1.0, atol=1e-6)
    assert matrices.min() >= 0
    assert np.diagonal(matrices, axis1=1, axis2=2).min() > 0
    assert (off_diagonal(matrices) > 0).sum((1, 2)).mean() == pytest.approx(n * r, abs=0.2)


@pytest.mark.parametrize("most", [None, 20])
def test_a_fractional_r_draws_the_two_nearest_counts(most):
    matrices = draws(topology.random_neighbours(24, 3.25, most=most), 400)
    counts = (off_diagonal(matrices) > 0).sum(-1)
    assert set(np.unique(counts)) == {3, 4}
    assert counts.mean() == pytest.approx(3.25, abs=0.03)
    expected = np.where(off_diagonal(matrices) > 0, 1 / (1 + counts[..., None]), 0)
    np.testing.assert_allclose(off_diagonal(matrices), expected, atol=1e-6)
    share = (off_diagonal(matrices) > 0).mean(0)
    assert np.abs(share[~np.eye(24, dtype=bool)] - 3.25 / 23).max() < 0.09


@pytest.mark.parametrize("r", [7.0, 50.0])
def test_as_many_neighbours_as_there_are_average_exactly(r):
    matrices = draws(topology.random_neighbours(8, r), 3)
    np.testing.assert_allclose(matrices, 1 / 8, atol=1e-7)


def test_r_may_be_traced_and_a_function_of_the_round():
    def count(r, index):
        schedule = topology.random_neighbours(6, lambda t: jnp.where(t < 3, r, 5.0))
        drawn = schedule.draw(schedule.tables, jax.random.key(0), index)
        return (drawn > 0).sum() - 6

    counts = jax.jit(jax.vmap(jax.vmap(count, (None, 0)), (0, None)))(
        jnp.array([0.0, 2.0]), jnp.array([0, 3])
    )
    np.testing.assert_array_equal(counts, [[0, 30], [12, 30]])
    swept = jax.vmap(
        lambda r: topology.random_neighbours(20, r, most=4).draw(None, jax.random.key(0), 0)
    )(jnp.array([1.0, 4.0, 9.0]))
    np.testing.assert_array_equal((swept.weights > 0).sum((1, 2)), [20, 80, 80])


def test_second_moment_of_random_neighbours():
    n, r = 6, 0.5
    x = np.random.default_rng(0).standard_normal(n)
    x -= x.mean()
    total = (x**2).sum()
    met = (x**2 - 2 * x**2 / (n - 1) + (total - x**2) / (n - 1)) / 4
    expected = ((1 - r) * x**2 + r * met).sum()
    mixed = draws(topology.random_neighbours(n, r), 20_000) @ x
    assert (mixed**2).sum(1).mean() == pytest.approx(expected, rel=0.02)


def test_neighbours_of_a_base_graph():
    base = topology.star(6)
    matrices = draws(topology.random_neighbours(6, 2.0, base=base), 200)
    linked = base.sparse().toarray() > 0
    assert not np.any(off_diagonal(matrices)[:, ~linked])
    counts = (off_diagonal(matrices) > 0).sum(-1)
    np.testing.assert_array_equal(counts, np.broadcast_to([2, 1, 1, 1, 1, 1], counts.shape))


@pytest.mark.parametrize(("n", "p"), [(6, 1.0), (6, 0.3), (5, 1.0)])
def test_matchings_pair_nodes_uniformly(n, p):
    matrices = draws(topology.random_matching(n, p), DRAWS)
    np.testing.assert_allclose(matrices, np.swapaxes(matrices, 1, 2))
    np.testing.assert_allclose(matrices.sum(-1), 1.0)
    assert set(np.unique(matrices)) <= {0.0, 0.5, 1.0}
    met = (off_diagonal(matrices) > 0).sum((1, 2))
    assert met.max() == n // 2 * 2
    pairs = n // 2 * p / (n * (n - 1) / 2)
    mean = off_diagonal(matrices).mean(0)[~np.eye(n, dtype=bool)]
    assert np.abs(mean - pairs / 2).max() < 0.02
    if p == 1:
        assert met.min() == n // 2 * 2


@pytest.mark.some(2)
@pytest.mark.parametrize(("n", "degree"), [(9, 4), (10, 3), (8, 7), (2, 1), (7, 6)])
def test_regular_graphs_redrawn_each_round(n, degree):
    matrices = draws(topology.random_regular_each_round(n, degree), 50)
    np.testing.assert_allclose(matrices, np.swapaxes(matrices, 1, 2), atol=1e-6)
    np.testing.assert_allclose(matrices.sum(-1), 1.0, atol=1e-6)
    assert np.all((off_diagonal(matrices) > 0).sum(-1) == degree)
    linked = off_diagonal(matrices) > 0
    np.testing.assert_allclose(off_diagonal(matrices)[linked], 1 / (degree + 1), atol=1e-6)
    if degree < n - 1:
        assert len(np.unique(matrices, axis=0)) > 10


def test_periodic_takes_turns():
    matrices = [topology.metropolis(g) for g in (topology.star(5), topology.ring(5))]
    schedule = topology.periodic(matrices)
    for t in range(4):
        drawn = as_dense(schedule.draw(schedule.tables, None, jnp.int32(t)))
        np.testing.assert_allclose(drawn, matrices[t % 2].dense(), atol=1e-6)
    assert schedule.symmetric


def test_rounds_are_connected_together_or_disconnected_when_asked_for():
    across = topology.from_edges(4, np.array([[1, 2], [3, 0]]), disconnected=True)
    matrices = [topology.metropolis(graph) for graph in (APART, across)]
    assert topology.periodic(matrices).nodes == 4
    schedule = topology.periodic(matrices[:1], disconnected=True)
    drawn = as_dense(schedule.draw(schedule.tables, None, jnp.int32(0)))
    np.testing.assert_allclose(drawn, matrices[0].dense())
    base = topology.random_neighbours(4, 1.0, base=APART, disconnected=True)
    assert np.all(draws(base, 20)[:, :2, 2:] == 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: topology.random_matching(1), "nodes must be"),
        (lambda: topology.random_matching(4, 1.5), "probability must be"),
        (lambda: topology.random_matching(4, np.array([0.5, 0.5])), "probability must be a single"),
        (lambda: topology.random_neighbours(4, -0.5), "r must be"),
        (lambda: topology.random_neighbours(4, np.array([1.0, 2.0])), "r must be a single"),
        (lambda: topology.random_neighbours(4, 1.0, most=4), "most must be"),
        (lambda: topology.random_neighbours(4, 1.0, base=topology.ring(5)), "base must have"),
        (lambda: topology.random_regular_each_round(5, 3), "even"),
        (lambda: topology.random_regular_each_round(5, 5), "degree must be"),
        (
            lambda: topology.random_neighbours(4, 1.0, base=APART),
            r"base must be connected, got 2 components.*\[0, 1\], \[2, 3\].*disconnected=True",
        ),
        (
            lambda: topology.random_neighbours(3, 1.0, base=ONE_WAY),
            "base must be strongly connected, got 3 components",
        ),
        (
            lambda: topology.periodic([topology.metropolis(APART)] * 2),
            "matrices over a whole period must be connected, got 2 comp.*disconnected=True",
        ),
        (
            lambda: topology.periodic([topology.uniform(ONE_WAY, row_stochastic=True)] * 2),
            "matrices over a whole period must be strongly connected, got 3 components",
        ),
        (lambda: topology.periodic([]), "at least one"),
        (
            lambda: topology.periodic([topology.metropolis(topology.ring(n)) for n in (3, 4)]),
            "one size",
        ),
        (
            lambda: topology.periodic([topology.column_stochastic(topology.star(4))]),
            "rows that sum to 1",
        ),
    ],
)
def test_bad_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: topology.periodic([topology.ring(4)]), r"matrices\[0\] must be.*metropolis"),
        (lambda: topology.random_neighbours(5, 1.0, base=3), "base must be of type Graph"),
        (lambda: topology.random_neighbours(5, "one"), "r must be a real number"),
    ],
)
def test_wrong_kinds_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("base", [None, topology.complete(8)])
def test_the_adversary_is_heard_before_all_others(base):
    """Of six messages waited for two are the adversary's, and each other node's share is the same."""
    first = [2, 6]
    schedule = topology.random_neighbours(8, 5, base=base, first=first)
    assert schedule.least == 5
    matrices = draws(schedule, DRAWS)
    np.testing.assert_allclose(np.delete(matrices[:, :, 2], 2, axis=1), 1 / 6, rtol=1e-6)
    np.testing.assert_allclose(np.delete(matrices[:, :, 6], 6, axis=1), 1 / 6, rtol=1e-6)
    others = [0, 1, 3, 4, 5, 7]
    share = (matrices > 0).mean(0)[np.ix_(others, others)]
    np.testing.assert_allclose(share[~np.eye(6, dtype=bool)], 3 / 5, atol=0.05)
    # Of more of them than are waited for some are drawn, at random.
    few = draws(topology.random_neighbours(8, 1, base=base, first=first), DRAWS)
    share = (few > 0).mean(0)[np.ix_(others, first)]
    np.testing.assert_allclose(share, 0.5, atol=0.05)
    with pytest.raises(ValueError, match="first must be"):
        topology.random_neighbours(8, 5, first=[8])
