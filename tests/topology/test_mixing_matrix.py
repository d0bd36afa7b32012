import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dflax import topology


@st.composite
def graphs(draw):
    nodes = draw(st.integers(2, 9))
    spanning = [(draw(st.integers(0, i - 1)), i) for i in range(1, nodes)]
    pairs = st.tuples(st.integers(0, nodes - 1), st.integers(0, nodes - 1))
    extra = [pair for pair in draw(st.lists(pairs, max_size=12)) if pair[0] != pair[1]]
    return topology.from_edges(nodes, np.array(spanning + extra))


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_metropolis_and_max_degree_are_symmetric_and_doubly_stochastic(graph):
    for rule in (topology.metropolis, topology.max_degree):
        for matrix in (rule(graph), topology.lazy(rule(graph))):
            dense = matrix.dense()
            np.testing.assert_allclose(dense, dense.T, atol=1e-15)
            np.testing.assert_allclose(dense.sum(1), 1.0, atol=1e-14)
            assert dense.min() >= 0
            assert np.diagonal(dense).min() > 0
            assert matrix.symmetric
            assert matrix.doubly_stochastic
            assert topology.second_eigenvalue(matrix) < 1 - 1e-6


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_slots_and_sparse_hold_the_same_matrix(graph):
    matrix = topology.metropolis(graph)
    neighbours, weights = matrix.slots()
    rebuilt = np.diag(1 - weights.sum(1))
    for k in range(neighbours.shape[1]):
        np.add.at(rebuilt, (np.arange(graph.nodes), neighbours[:, k]), weights[:, k])
    np.testing.assert_allclose(rebuilt, matrix.dense(), atol=1e-14)
    np.testing.assert_allclose(matrix.sparse().toarray(), matrix.dense(), atol=1e-14)


def test_metropolis_weights_by_their_formula():
    graph = topology.erdos_renyi(15, 0.3, seed=1)
    reference = networkx.from_scipy_sparse_array(graph.sparse())
    dense = topology.metropolis(graph).dense()
    for i, j in reference.edges:
        assert dense[i, j] == pytest.approx(
            1 / (1 + max(reference.degree[i], reference.degree[j])), abs=1e-15
        )


def test_lazy_is_half_identity():
    matrix = topology.metropolis(topology.star(5))
    np.testing.assert_allclose(
        topology.lazy(matrix).dense(), (np.eye(5) + matrix.dense()) / 2, atol=1e-15
    )


def test_uniform_weights_on_regular_directed_graphs_keep_the_mean():
    matrix = topology.uniform(topology.exponential(6))
    dense = matrix.dense()
    np.testing.assert_allclose(dense.sum(0), 1.0)
    np.testing.assert_allclose(dense[0, [0, 5, 4, 2]], 0.25)
    assert not matrix.symmetric


def test_column_stochastic_shares_equally():
    graph = topology.from_edges(3, np.array([[0, 1], [1, 2], [2, 0], [0, 2]]), directed=True)
    expected = np.array([[1 / 3, 0, 1 / 2], [1 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 1 / 2]])
    matrix = topology.column_stochastic(graph)
    np.testing.assert_allclose(matrix.dense(), expected)
    assert matrix.column_stochastic
    assert not matrix.row_stochastic


def test_shift_weights_follow_the_shifts():
    matrix = topology.metropolis(topology.torus(3, 4))
    np.testing.assert_allclose(matrix.shift_weights, np.full(5, 0.2))
    assert topology.metropolis(topology.star(4)).shift_weights is None
    assert topology.metropolis(topology.complete(4)).averages
    assert not matrix.averages
    assert matrix.shared_weight is None
    complete = topology.uniform(topology.complete(4), self_weight=0.0)
    assert complete.shared_weight == pytest.approx(1 / 3)
    assert not complete.averages
    assert topology.uniform(topology.complete(4), self_weight=1.0).shared_weight is None


def test_a_matrix_of_ones_own_comes_back():
    values = topology.metropolis(topology.geometric(12, 0.6, seed=2)).dense()
    np.testing.assert_allclose(topology.from_dense(values).dense(), values)
    rows = np.array([[0.5, 0.5], [0.25, 0.75]])
    assert topology.from_dense(rows, row_stochastic=True).row_stochastic


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: topology.metropolis(topology.exponential(6)), "undirected"),
        (lambda: topology.uniform(topology.star(4)), "columns that sum to 1.*metropolis"),
        (lambda: topology.from_dense(np.ones((2, 3)) / 3), "square"),
        (lambda: topology.from_dense(np.array([[1.5, -0.5], [-0.5, 1.5]])), ">= 0, got -0.5"),
        (lambda: topology.from_dense(np.eye(2) * 0.9), "rows that sum to 1, got 0.9"),
        (lambda: topology.from_dense(np.array([[0.5, 0.5], [0.25, 0.75]])), "columns"),
        (lambda: topology.from_dense(np.full((2, 2), np.nan)), "finite"),
        (lambda: topology.from_dense(np.eye(3)), "connected, got 3 components.*disconnected=True"),
        (
            lambda: topology.from_dense(np.array([[1.0, 0.0], [0.5, 0.5]]), row_stochastic=True),
            "strongly connected",
        ),
        (lambda: topology.metropolis(topology.ring(10_000)).dense(), r"sparse\(\)"),
    ],
)
def test_bad_matrices_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_disconnected_matrix_passes_when_asked_for():
    matrix = topology.from_dense(np.eye(3), disconnected=True)
    np.testing.assert_array_equal(matrix.dense(), np.eye(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: topology.metropolis(np.ones((3, 3))), "graph must be of type Graph, not ndarray"),
        (lambda: topology.max_degree(np.ones((3, 3))), "graph must be of type Graph"),
        (lambda: topology.uniform(np.ones((3, 3))), "(?s)graph must be.*from_adjacency"),
        (lambda: topology.uniform(topology.ring(4), row_stochastic="no"), "row_stochastic must be"),
        (lambda: topology.column_stochastic(3), "graph must be of type Graph"),
        (lambda: topology.lazy(topology.ring(4)), r"matrix must be.*topology.metropolis\(graph\)"),
        (lambda: topology.lazy(np.eye(3)), r"(?s)matrix must be.*topology.from_dense\(array\)"),
        (lambda: topology.from_dense(np.eye(3), disconnected=1), "disconnected must be True or"),
    ],
)
def test_wrong_kinds_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_uniform_weights_with_an_own_weight():
    graph = topology.random_regular(12, 4, seed=0)
    for beta in (0.0, 0.5, 1.0):
        matrix = topology.uniform(graph, self_weight=beta)
        np.testing.assert_allclose(matrix.self_weights, beta, atol=1e-12)
        np.testing.assert_allclose(matrix.weights, (1 - beta) / 4)
        assert matrix.column_stochastic
    with pytest.raises(ValueError, match="self_weight must be a finite number in"):
        topology.uniform(graph, self_weight=1.5)
    with pytest.raises(ValueError, match="columns that sum to 1"):
        topology.uniform(topology.star(5), self_weight=0.5)
