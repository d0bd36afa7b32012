"""Mixing matrices I - s L of a graph's Laplacian, as methods of accelerated gossip state them."""

from typing import NamedTuple

import numpy as np

from dflax.topology.graph import CONNECT, Graph, require_connected
from dflax.topology.laplacian import laplacian
from dflax.topology.mixing_matrix import MixingMatrix


class Extremes(NamedTuple):
    """The least positive and the largest eigenvalue of a graph's Laplacian."""

    least: float
    largest: float


def extremes(graph: Graph) -> Extremes:
    """Both ends of the Laplacian's spectrum, for an undirected connected graph of up to 3000 nodes."""
    require_connected(graph, "graph", CONNECT)
    values = np.linalg.eigvalsh(laplacian(graph))
    return Extremes(float(values[1]), float(values[-1]))


def laplacian_mixing(graph: Graph, step: float) -> MixingMatrix:
    """`W = I - step L`: symmetric, rows that sum to 1; entries of its diagonal may be negative."""
    degrees = graph.in_degrees.astype(np.float64)
    return MixingMatrix(graph, np.full(len(graph.senders), step), 1.0 - step * degrees)
