import networkx
import numpy as np
import pytest
from scipy import sparse

from dflax import topology

SHIFTED = [
    (topology.ring(7), networkx.cycle_graph(7)),
    (topology.ring(2), networkx.path_graph(2)),
    (topology.torus(3, 4), networkx.grid_2d_graph(3, 4, periodic=True)),
    (topology.torus(2, 3), networkx.grid_2d_graph(2, 3, periodic=True)),
    (topology.hypercube(8), networkx.hypercube_graph(3)),
    (topology.complete(5), networkx.complete_graph(5)),
    (topology.star(6), networkx.star_graph(5)),
    (topology.path(6), networkx.path_graph(6)),
    (topology.circulant(9, (1, 3)), networkx.circulant_graph(9, [1, 3])),
]


@pytest.mark.parametrize(("graph", "reference"), SHIFTED, ids=lambda g: getattr(g, "name", ""))
def test_families_are_networkx_graphs_in_row_major_order(graph, reference):
    nodes = sorted(reference.nodes)
    expected = networkx.to_numpy_array(reference, nodelist=nodes)
    np.testing.assert_array_equal(graph.sparse().toarray(), expected)
    assert not graph.directed
    assert graph.connected


def test_exponential_graph_sends_by_powers_of_two():
    graph = topology.exponential(6)
    edges = {(j, (j + o) % 6) for j in range(6) for o in (1, 2, 4)}
    assert set(zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True)) == edges
    assert graph.directed
    assert graph.regular


def test_directed_ring_hears_its_left_neighbour():
    graph = topology.ring(5, directed=True)
    np.testing.assert_array_equal(graph.senders, (np.arange(5) - 1) % 5)
    np.testing.assert_array_equal(graph.receivers, np.arange(5))


def test_edges_and_adjacency_describe_the_same_graph():
    adjacency = np.array([[0, 1, 0], [0, 0, 1], [1, 1, 0]])
    graph = topology.from_adjacency(adjacency)
    np.testing.assert_array_equal(graph.sparse().toarray(), adjacency)
    assert graph.directed
    np.testing.assert_array_equal(graph.in_degrees, adjacency.sum(1))
    np.testing.assert_array_equal(graph.out_degrees, adjacency.sum(0))
    receivers, senders = adjacency.nonzero()
    pairs = np.stack([senders, receivers], 1)
    other = topology.from_edges(3, np.concatenate([pairs, pairs]), directed=True)
    np.testing.assert_array_equal(other.sparse().toarray(), adjacency)
    from_sparse = topology.from_adjacency(sparse.csr_array(adjacency))
    np.testing.assert_array_equal(from_sparse.sparse().toarray(), adjacency)


def test_links_are_sorted_pairs():
    graph = topology.from_edges(4, np.array([[3, 2], [1, 0], [2, 1]]))
    np.testing.assert_array_equal(graph.links, [[0, 1], [1, 2], [2, 3]])


def test_large_sparse_graphs_need_no_dense_matrix():
    graph = topology.ring(100_000)
    assert len(graph.senders) == 200_000
    assert topology.metropolis(graph).doubly_stochastic


@pytest.mark.parametrize(
    "graph",
    [
        topology.erdos_renyi(30, 0.2, seed=3),
        topology.random_regular(20, 3, seed=3),
        topology.geometric(30, 0.4, seed=3),
    ],
    ids=lambda g: g.name,
)
def test_random_graphs_are_connected_and_undirected(graph):
    reference = networkx.from_scipy_sparse_array(graph.sparse())
    assert networkx.is_connected(reference)
    np.testing.assert_array_equal(graph.sparse().toarray(), graph.sparse().toarray().T)


def test_random_graphs_are_seeded():
    one, same, other = (topology.erdos_renyi(20, 0.3, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.senders, same.senders)
    assert not np.array_equal(one.senders, other.senders)
    assert set(topology.random_regular(12, 5, seed=0).in_degrees.tolist()) == {5}


def test_a_sparse_draw_is_repeated_until_connected():
    # At this p about one draw in five is connected; seed 0 to 9 all end with a connected one.
    for seed in range(10):
        assert topology.erdos_renyi(20, 0.13, seed=seed).connected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: topology.ring(1), "nodes must be an integer >= 2"),
        (lambda: topology.torus(1, 4), "rows must be"),
        (lambda: topology.hypercube(6), "power of two.*got 6"),
        (lambda: topology.random_regular(5, 3), r"even.*got 5 \* 3"),
        (lambda: topology.random_regular(6, 6), "degree must be an integer in"),
        (lambda: topology.random_regular(12, 1), "connected.*Raise degree"),
        (lambda: topology.erdos_renyi(50, 0.001), "connected.*Raise probability"),
        (lambda: topology.erdos_renyi(50, 1.5), "probability must be"),
        (lambda: topology.geometric(50, 0.01), "connected.*Raise radius"),
        (lambda: topology.circulant(8, (2,)), "2 components"),
        (lambda: topology.from_edges(4, np.array([[0, 1], [2, 3]])), r"\[0, 1\], \[2, 3\]"),
        (lambda: topology.from_edges(3, np.array([[0, 3]])), r"in \[0, 3\)"),
        (lambda: topology.from_edges(3, np.array([[1, 1]])), "self-loops.*node 1"),
        (lambda: topology.from_edges(3, np.array([0, 1])), r"shape \[E, 2\]"),
        (lambda: topology.from_edges(3, np.array([[0, 1], [1, 2]]), directed=True), "strongly"),
        (lambda: topology.from_adjacency(np.ones((2, 3))), "square"),
        (lambda: topology.from_adjacency(np.full((3, 3), np.nan)), "adjacency must be finite"),
        (lambda: topology.from_adjacency(np.eye(3) - 1), r"adjacency must be .* in \[0, inf\)"),
        (lambda: topology.from_adjacency(-sparse.eye_array(3)), "Write 0 where there is no edge"),
        (lambda: topology.from_shifts((4, 4), ((1,),), "bad"), "2 integers, one per side"),
        (lambda: topology.exponential(8).links, "undirected"),
    ],
)
def test_bad_graphs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_edges_that_are_no_integers_are_refused():
    with pytest.raises(TypeError, match="integers"):
        topology.from_edges(3, np.array([[0.0, 1.0]]))


def test_disconnected_graphs_pass_when_asked_for():
    graph = topology.from_edges(4, np.array([[0, 1], [2, 3]]), disconnected=True)
    assert not graph.connected


def test_an_adjacency_of_words_is_refused():
    with pytest.raises(TypeError, match="adjacency must be real numbers, not <U1"):
        topology.from_adjacency(np.array([["a", "b"], ["c", "d"]]))
