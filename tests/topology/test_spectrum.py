import math

import numpy as np
import pytest

from dflax import topology
from dflax.topology import spectrum


def reference(matrix):
    """Second largest modulus by a dense solver."""
    values = np.linalg.eigvals(matrix.dense())
    return np.sort(np.abs(np.delete(values, np.abs(values - 1).argmin())))[-1]


def test_ring_of_four():
    values = topology.eigenvalues(topology.metropolis(topology.ring(4)))
    np.testing.assert_allclose(values, [1, 1 / 3, 1 / 3, -1 / 3], atol=1e-15)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (topology.metropolis(topology.ring(20)), 1 / 3 + 2 / 3 * math.cos(2 * math.pi / 20)),
        (topology.metropolis(topology.ring(20)), 0.967371),
        (topology.metropolis(topology.torus(5, 7)), (3 + 2 * math.cos(2 * math.pi / 7)) / 5),
        (topology.metropolis(topology.hypercube(16)), 1 - 2 / 5),
        (topology.metropolis(topology.complete(6)), 0.0),
        (topology.metropolis(topology.star(6)), 1 - 1 / 6),
        (topology.uniform(topology.exponential(64)), 1 - 2 / 7),
        (topology.uniform(topology.ring(3, directed=True)), 0.5),
    ],
)
def test_closed_forms(matrix, expected):
    assert topology.second_eigenvalue(matrix) == pytest.approx(expected, abs=1e-6)
    assert topology.spectral_gap(matrix) == pytest.approx(1 - expected, abs=1e-6)


@pytest.mark.parametrize(
    "graph",
    [
        topology.ring(9),
        topology.torus(2, 5),
        topology.exponential(11),
        topology.circulant(10, (1, 4)),
    ],
    ids=lambda g: g.name,
)
def test_fourier_agrees_with_a_dense_solver(graph):
    matrix = topology.uniform(graph)
    assert topology.second_eigenvalue(matrix) == pytest.approx(reference(matrix), abs=1e-12)
    expected = np.linalg.eigvals(matrix.dense())
    found = topology.eigenvalues(matrix)
    for value in expected:
        assert np.abs(found - value).min() < 1e-12


@pytest.mark.parametrize(
    "matrix",
    [
        topology.metropolis(topology.erdos_renyi(60, 0.15, seed=0)),
        topology.uniform(topology.erdos_renyi(60, 0.15, seed=0), row_stochastic=True),
    ],
    ids=["symmetric", "row-stochastic"],
)
def test_iteration_on_the_sparse_matrix_agrees_with_a_dense_solver(matrix, monkeypatch):
    expected = topology.second_eigenvalue(matrix)
    assert expected == pytest.approx(reference(matrix), abs=1e-12)
    monkeypatch.setattr(spectrum, "LARGEST_DENSE", 10)
    assert topology.second_eigenvalue(matrix) == pytest.approx(expected, abs=1e-8)


def test_a_ring_of_any_size_has_its_closed_form():
    gap = topology.spectral_gap(topology.metropolis(topology.ring(100_000)))
    assert gap == pytest.approx(2 / 3 * (1 - math.cos(2 * math.pi / 100_000)), rel=1e-6)


def test_a_disconnected_matrix_never_mixes():
    matrix = topology.from_dense(np.kron(np.eye(2), np.full((2, 2), 0.5)), disconnected=True)
    assert topology.second_eigenvalue(matrix) == pytest.approx(1.0)


def test_too_many_nodes_for_all_eigenvalues_are_refused():
    matrix = topology.metropolis(topology.path(2000))
    with pytest.raises(ValueError, match="second_eigenvalue"):
        topology.eigenvalues(matrix)


@pytest.mark.parametrize("given", [topology.ring(4), np.eye(3)])
@pytest.mark.parametrize(
    "measure", [topology.eigenvalues, topology.second_eigenvalue, topology.spectral_gap]
)
def test_anything_but_a_mixing_matrix_is_refused(measure, given):
    with pytest.raises(
        TypeError, match=r"(?s)matrix must be of type MixingMatrix.*topology.metropolis\(graph\)"
    ):
        measure(given)
