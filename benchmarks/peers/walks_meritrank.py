"""Walks of the `meritrank-python` package."""

import time
from typing import Any

import networkx as nx
from meritrank_python.rank import IncrementalMeritRank


def measure(edges: list[tuple[int, int, float]], stop: float, walks: int) -> dict[str, Any]:
    """Milliseconds of a walk from node 0, and the share of the walks that came by each node."""
    graph = nx.DiGraph()
    for source, target, weight in edges:
        graph.add_edge(str(source), str(target), weight=weight)
    rank = IncrementalMeritRank(graph)
    rank.alpha = 1.0 - stop
    began = time.perf_counter()
    rank.calculate("0", num_walks=walks)
    took = time.perf_counter() - began
    ranks = rank.get_ranks("0")
    # Every walk comes by its root.
    whole = ranks["0"]
    return {
        "ms": 1e3 * took / walks,
        "shares": {int(node): share / whole for node, share in ranks.items()},
    }
