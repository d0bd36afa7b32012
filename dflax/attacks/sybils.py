"""Sybils: nodes of one adversary, with few edges to the honest nodes of a graph."""

import numpy as np

from dflax import validation
from dflax.topology import Graph
from dflax.topology.graph import from_edges


def with_sybils(
    graph: Graph, attack_edges: float, *, degree: int = 7, seed: int = 0, name: str = "sybils"
) -> Graph:
    """A graph with Sybils spread over it: phi attack edges for every honest node, on the mean.

    Every honest node gets floor(phi) edges to Sybils, and `round(h (phi - floor(phi)))` of the h honest
    nodes, drawn at random, get one more. Each Sybil takes up to `degree` of these edges, to honest nodes
    that lie near each other (in the order of a breadth-first walk), and no two of them to one node.

    Args:
      graph: the honest nodes, numbered 0 to h - 1, undirected.
      attack_edges: phi > 0, on the mean over honest nodes.
      degree: edges of a Sybil, at most; in [1, h].
      seed: of the host's generator, for who gets one more and where the walk begins.
      name: for tables and figures.

    Returns:
      A `Graph` of h + s nodes, of which h, ..., h + s - 1 are Sybils. There are no edges between Sybils:
      they are one adversary. Without an edge that joins them the honest nodes are as they were.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Werthenbach and Pouwelse, Towards Sybil Resilience in Decentralized Learning, arXiv 2306.15044.
    """
    validation.instance("graph", graph, Graph, "Make one with dflax.topology.")
    if graph.directed:
        raise ValueError("graph must be undirected for Sybils, got a directed one.")
    honest = graph.nodes
    validation.real(
        "attack_edges", attack_edges, low=0.0, high=float(honest), low_open=True, scalar=True
    )
    validation.integer("degree", degree, low=1, high=honest)
    validation.seed("seed", seed)
    rng = np.random.default_rng(seed)
    whole = int(np.floor(attack_edges))
    more = round(honest * (attack_edges - whole))
    if not whole + more:
        raise ValueError(
            f"attack_edges must make one edge at least, got {attack_edges} of each of {honest} nodes."
        )
    walk = _walk(graph, int(rng.integers(honest)))
    extra = walk[np.sort(rng.permutation(honest)[:more])]
    # Each pass over the nodes is dealt to Sybils of its own, so none has two edges to one node.
    passes = [walk] * whole + ([extra] if more else [])
    edges, sybil = [], honest
    for one in passes:
        for start in range(0, len(one), degree):
            edges += [(int(node), sybil) for node in one[start : start + degree]]
            sybil += 1
    kept = [(int(a), int(b)) for a, b in zip(graph.senders, graph.receivers, strict=True) if a < b]
    return from_edges(sybil, np.asarray(kept + edges), disconnected=not graph.connected, name=name)


def _walk(graph: Graph, start: int) -> np.ndarray:
    """The nodes in the order of a breadth-first walk; of further components after the first."""
    heard: list[list[int]] = [[] for _ in range(graph.nodes)]
    for a, b in zip(graph.senders, graph.receivers, strict=True):
        heard[int(b)].append(int(a))
    order: list[int] = []
    seen = np.zeros(graph.nodes, bool)
    for root in [start, *range(graph.nodes)]:
        queue = [] if seen[root] else [root]
        seen[root] = True
        while queue:
            node = queue.pop(0)
            order.append(node)
            queue += [other for other in heard[node] if not seen[other]]
            seen[heard[node]] = True
    return np.asarray(order)
