import math

import networkx
import numpy as np
import pytest

from dflax import topology


def unit_rate(graph):
    return 1 / len(graph.links)


@pytest.mark.parametrize("n", [3, 8, 13])
def test_closed_forms_at_unit_total_rate(n):
    star, complete, ring = topology.star(n), topology.complete(n), topology.ring(n)
    assert topology.chi_1(star, unit_rate(star)) == pytest.approx(n - 1)
    assert topology.chi_2(star, unit_rate(star)) == pytest.approx((n - 1) / 2)
    assert topology.chi_1(complete, unit_rate(complete)) == pytest.approx((n - 1) / 2)
    assert topology.chi_2(complete, unit_rate(complete)) == pytest.approx((n - 1) / 2)
    assert topology.chi_1(ring, unit_rate(ring)) == pytest.approx(
        n / (2 - 2 * math.cos(2 * math.pi / n))
    )
    assert topology.chi_2(ring, unit_rate(ring)) == pytest.approx((n - 1) / 2)


@pytest.mark.parametrize(
    ("graph", "rate"),
    [
        (topology.star(8), 7.0),
        (topology.path(8), 17.9404),
        (topology.ring(8), 9.7774),
        (topology.complete(6), 3.5355),
    ],
    ids=lambda g: getattr(g, "name", ""),
)
def test_total_rates_that_gossip_needs(graph, rate):
    one, two = topology.chi_1(graph, unit_rate(graph)), topology.chi_2(graph, unit_rate(graph))
    assert math.sqrt(2 * one * two) == pytest.approx(rate, abs=1e-4)


@pytest.mark.parametrize(
    "graph",
    [
        topology.torus(3, 4),
        topology.torus(2, 3),
        topology.hypercube(8),
        topology.ring(6),
        topology.erdos_renyi(12, 0.4, seed=0),
        topology.path(7),
    ],
    ids=lambda g: g.name,
)
def test_resistances_agree_with_networkx_and_foster(graph):
    reference = networkx.from_scipy_sparse_array(graph.sparse())
    found = topology.effective_resistances(graph)
    expected = [networkx.resistance_distance(reference, int(i), int(j)) for i, j in graph.links]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found.sum() == pytest.approx(graph.nodes - 1)
    rates = np.random.default_rng(0).uniform(0.2, 3.0, len(graph.links))
    weighted = topology.effective_resistances(graph, rates)
    assert (rates * weighted).sum() == pytest.approx(graph.nodes - 1)
    assert topology.chi_2(graph, rates) <= topology.chi_1(graph, rates) + 1e-12


def test_transform_agrees_with_the_dense_laplacian():
    graph = topology.torus(4, 5)
    rates = np.full(len(graph.links), 0.7)
    assert topology.chi_1(graph, 0.7) == pytest.approx(topology.chi_1(graph, rates))
    np.testing.assert_allclose(
        topology.effective_resistances(graph, 0.7), topology.effective_resistances(graph, rates)
    )


def test_chi_falls_as_rates_rise():
    graph = topology.path(5)
    assert topology.chi_1(graph, 2.0) == pytest.approx(topology.chi_1(graph) / 2)
    assert topology.chi_2(graph, 2.0) == pytest.approx(topology.chi_2(graph) / 2)


def test_laplacian_by_its_definition():
    graph, rates = topology.path(3), np.array([2.0, 5.0])
    np.testing.assert_array_equal(
        topology.laplacian(graph, rates), [[2, -2, 0], [-2, 7, -5], [0, -5, 5]]
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: topology.chi_1(topology.exponential(8)), "undirected"),
        (lambda: topology.chi_1(topology.ring(4), 0.0), "rates must be"),
        (lambda: topology.chi_1(topology.ring(4), np.ones(3)), r"shape \[4\]"),
        (lambda: topology.chi_1(topology.path(3001)), "nodes must be"),
        (
            lambda: topology.chi_2(
                topology.from_edges(4, np.array([[0, 1], [2, 3]]), disconnected=True)
            ),
            "2 components",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "measure",
    [topology.laplacian, topology.chi_1, topology.chi_2, topology.effective_resistances],
)
def test_anything_but_a_graph_is_refused(measure):
    with pytest.raises(TypeError, match="graph must be of type Graph, not ndarray"):
        measure(np.ones((3, 3)))
