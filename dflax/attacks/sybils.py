"""Sybils: nodes of one adversary, with few edges to the honest nodes of a graph."""

import collections

import numpy as np

from dflax import validation
from dflax.topology import Graph
from dflax.topology.graph import from_edges


def with_sybils(
    graph: Graph, attack_edges: float, *, degree: int = 7, seed: int = 0, name: str = "sybils"
) -> Graph:
    """A graph with Sybils spread over it: phi attack edges for every honest node, on the mean.

    Every honest node gets floor(phi) edges to Sybils, and `round(h (phi - floor(phi)))` of the h honest
    nodes, drawn at random, get one more. Each Sybil takes up to `degree` of these edges, to a node and
    those nearest to it that have none yet, and no two of them to one node.

    Args:
      graph: the honest nodes, numbered 0 to h - 1, undirected.
      attack_edges: phi > 0, on the mean over honest nodes.
      degree: edges of a Sybil, at most; in [1, h].
      seed: of the host's generator, for who gets one more and whom the Sybils begin with.
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
    everyone = rng.permutation(honest)
    extra = rng.permutation(honest)[:more]
    # Each pass over the nodes is dealt to Sybils of its own, so none has two edges to one node.
    passes = [everyone] * whole + ([extra] if more else [])
    neighbours = [graph.senders[graph.receivers == node] for node in range(honest)]
    edges, sybil = [], honest
    for victims in passes:
        free = set(victims.tolist())
        for node in victims.tolist():
            if node in free:
                near = _nearest(neighbours, node, free, degree)
                free -= set(near)
                edges += [(one, sybil) for one in near]
                sybil += 1
    kept = [(int(a), int(b)) for a, b in zip(graph.senders, graph.receivers, strict=True) if a < b]
    return from_edges(sybil, np.asarray(kept + edges), disconnected=not graph.connected, name=name)


def _nearest(neighbours: list[np.ndarray], start: int, free: set[int], count: int) -> list[int]:
    """Up to so many of the free nodes that can be reached, in the order of a breadth-first walk."""
    found: list[int] = []
    seen, reached = {start}, collections.deque([start])
    while reached and len(found) < count:
        node = reached.popleft()
        if node in free:
            found.append(node)
        fresh = [other for other in neighbours[node].tolist() if other not in seen]
        seen.update(fresh)
        reached.extend(fresh)
    return found
