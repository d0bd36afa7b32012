"""Random graphs, drawn once on the host, redrawn until they are connected."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dflax import validation
from dflax.topology.graph import Graph, from_edges

TRIES = 50


def erdos_renyi(nodes: int, probability: float, seed: int = 0) -> Graph:
    """The Erdős–Rényi graph G(n, p), conditioned on being connected.

    Args:
      nodes: n >= 2.
      probability: p in (0, 1], of each link. Below about ln(n) / n a draw is rarely connected.
      seed: of the draws, >= 0.

    Returns:
      An undirected `Graph`.

    Raises:
      ValueError: arguments out of range, or no connected draw in 50 tries.

    Examples:
      >>> import dflax as dx
      >>> graph = dx.topology.erdos_renyi(20, probability=0.3, seed=0)
      >>> graph.nodes, bool(graph.in_degrees.min() >= 1)
      (20, True)
    """
    validation.integer("nodes", nodes, low=2)
    validation.probability("probability", probability, low_open=True)
    validation.seed("seed", seed)

    def draw(seed: int) -> Any:
        import networkx

        return networkx.fast_gnp_random_graph(nodes, probability, seed=seed)

    threshold = math.log(nodes) / nodes
    fix = f"Raise probability={probability:g}: connected draws are likely above {threshold:.3g}."
    return _first_connected(
        draw, nodes, seed, f"Erdős–Rényi graph of {nodes}, p={probability:g}", fix
    )


def random_regular(nodes: int, degree: int, seed: int = 0) -> Graph:
    """A uniformly random graph in which every node has the same degree, conditioned on connected.

    Args:
      nodes: n >= 2; n times the degree must be even.
      degree: number of neighbours, in [1, n - 1]; connected draws need 2 or more when n > 2.
      seed: of the draws, >= 0.

    Returns:
      An undirected `Graph`.

    Raises:
      ValueError: arguments out of range, an odd product of nodes and degree, or no connected draw in
        50 tries.
    """
    validation.integer("nodes", nodes, low=2)
    validation.integer("degree", degree, low=1, high=nodes - 1)
    require_even(nodes, degree)
    validation.seed("seed", seed)

    def draw(seed: int) -> Any:
        import networkx

        return networkx.random_regular_graph(degree, nodes, seed=seed)

    fix = f"Raise degree={degree}: 3 or more is connected almost surely."
    return _first_connected(draw, nodes, seed, f"random {degree}-regular graph of {nodes}", fix)


def geometric(nodes: int, radius: float, seed: int = 0) -> Graph:
    """The random geometric graph: points uniform in the unit square, linked within a distance.

    Args:
      nodes: n >= 2.
      radius: distance in (0, sqrt 2] up to which two points are linked. Below about
        sqrt(ln(n) / (pi n)) a draw is rarely connected.
      seed: of the draws, >= 0.

    Returns:
      An undirected `Graph`, conditioned on being connected.

    Raises:
      ValueError: arguments out of range, or no connected draw in 50 tries.
    """
    validation.integer("nodes", nodes, low=2)
    validation.real("radius", radius, low=0.0, high=math.sqrt(2.0), low_open=True, scalar=True)
    validation.seed("seed", seed)

    def draw(seed: int) -> Any:
        import networkx

        return networkx.random_geometric_graph(nodes, radius, seed=seed)

    threshold = math.sqrt(math.log(nodes) / (math.pi * nodes))
    fix = f"Raise radius={radius:g}: connected draws are likely above {threshold:.3g}."
    return _first_connected(draw, nodes, seed, f"geometric graph of {nodes}, r={radius:g}", fix)


def require_even(nodes: int, degree: int) -> None:
    """Refuse an odd product of nodes and degree: every link has two ends."""
    if nodes * degree % 2:
        raise ValueError(
            f"degree must make nodes * degree even (every link has two ends), got {nodes} * {degree}. "
            "Change either by one."
        )


def _first_connected(
    draw: Callable[[int], Any], nodes: int, seed: int, name: str, fix: str
) -> Graph:
    retries = np.random.default_rng(seed).integers(1 << 31, size=TRIES - 1)
    for attempt in (seed, *retries.tolist()):
        pairs = np.array(draw(attempt).edges, dtype=np.int64).reshape(-1, 2)
        graph = from_edges(nodes, pairs, disconnected=True, name=name)
        if graph.connected:
            return graph
    raise ValueError(
        f"{name} must be connected, got {graph.components.max() + 1} components in the last of {TRIES} "
        f"draws with seed {seed}. {fix}"
    )
