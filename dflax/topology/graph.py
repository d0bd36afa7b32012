"""Communication graphs as host arrays of directed edges."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dflax import validation


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Who hears whom: n nodes and E directed edges, without self-loops or repetitions.

    Built by `from_edges`, `from_adjacency`, `from_shifts` or a named family (`ring`, `torus`, ...).
    Memory is proportional to the edges: no array of n x n is ever made.

    Attributes:
      nodes: n.
      senders: `[E]` int32, the node that speaks.
      receivers: `[E]` int32, the node that hears; edges are sorted by receiver.
      directed: False when every edge has its reverse.
      name: for tables and figures.
      shape: for a graph whose nodes are the points of a periodic grid, numbered in row-major order,
        and whose edges are translations of it: the grid's sides, `(n,)` for a circulant graph. None
        for any other graph.
      shifts: with `shape`: the translations; node p sends to p + s (modulo the sides) for each s.
        Edge number `i k + o` is then the one that node i hears through shift o of k.
    """

    nodes: int
    senders: Int[np.ndarray, " E"]
    receivers: Int[np.ndarray, " E"]
    directed: bool
    name: str
    shape: tuple[int, ...] | None = None
    shifts: tuple[tuple[int, ...], ...] | None = None

    @functools.cached_property
    def in_degrees(self) -> Int[np.ndarray, " n"]:
        """`[n]`, how many other nodes each node hears."""
        return np.bincount(self.receivers, minlength=self.nodes)

    @functools.cached_property
    def out_degrees(self) -> Int[np.ndarray, " n"]:
        """`[n]`, how many other nodes hear each node."""
        return np.bincount(self.senders, minlength=self.nodes)

    @property
    def regular(self) -> bool:
        """Whether all in-degrees and out-degrees are one and the same number."""
        degrees = np.concatenate([self.in_degrees, self.out_degrees])
        return bool(np.all(degrees == degrees[0]))

    @functools.cached_property
    def links(self) -> Int[np.ndarray, "m 2"]:
        """`[m, 2]`, the undirected edges as pairs i < j in lexicographic order.

        Raises:
          ValueError: the graph is directed.
        """
        require_undirected(self, "links")
        forward = self.senders < self.receivers
        pairs = np.stack([self.senders[forward], self.receivers[forward]], axis=1)
        return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]

    @functools.cached_property
    def components(self) -> Int[np.ndarray, " n"]:
        """`[n]`, the number of each node's (strongly) connected component."""
        from scipy.sparse import csgraph

        _, labels = csgraph.connected_components(
            self.sparse(), directed=self.directed, connection="strong"
        )
        return labels

    @property
    def connected(self) -> bool:
        """Whether every node can reach every other along the edges."""
        return int(self.components.max()) == 0

    def sparse(self, weights: Float[np.ndarray, " E"] | None = None) -> Any:
        """The `scipy.sparse` CSR matrix with `weights` (ones when None) at (receiver, sender)."""
        from scipy import sparse

        values = np.ones(len(self.senders)) if weights is None else weights
        rows = np.concatenate([[0], np.cumsum(self.in_degrees)])
        return sparse.csr_array((values, self.senders, rows), shape=(self.nodes, self.nodes))

    def slots(self) -> tuple[Int[np.ndarray, " E"], int]:
        """Each edge's place among those its receiver hears, and the largest in-degree."""
        starts = np.concatenate([[0], np.cumsum(self.in_degrees)[:-1]])
        return np.arange(len(self.senders)) - starts[self.receivers], int(self.in_degrees.max())


def from_edges(
    nodes: int,
    edges: Int[np.ndarray, "E 2"],
    *,
    directed: bool = False,
    disconnected: bool = False,
    name: str = "edges",
) -> Graph:
    """A graph from a list of edges.

    Args:
      nodes: n >= 1.
      edges: `[E, 2]` integers in [0, n): pairs (sender, receiver), or unordered pairs when the graph
        is undirected. Repeated edges count once.
      directed: whether a pair is an edge in one direction only.
      disconnected: whether a graph in which some node cannot reach another is accepted.
      name: for tables and figures.

    Returns:
      The `Graph`.

    Raises:
      TypeError: edges that are no integers.
      ValueError: a wrong shape, a node out of range, a self-loop, or a graph that is not (strongly)
        connected.
    """
    validation.integer("nodes", nodes, low=1)
    pairs = np.asarray(edges)
    if pairs.size == 0:
        pairs = np.zeros((0, 2), np.int64)
    if pairs.dtype.kind not in "iu":
        raise TypeError(f"edges must be pairs of node numbers (integers), got {pairs.dtype}.")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"edges must have shape [E, 2], got {pairs.shape}.")
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= nodes):
        raise ValueError(
            f"edges must join nodes in [0, {nodes}), got {pairs.min()} to {pairs.max()}. "
            "Nodes are numbered from 0."
        )
    loops = np.flatnonzero(pairs[:, 0] == pairs[:, 1])
    if len(loops):
        raise ValueError(
            f"edges must not hold self-loops, got one at node {pairs[loops[0], 0]}. Every node keeps "
            "a share of its own model through the mixing weights."
        )
    both = pairs if directed else np.concatenate([pairs, pairs[:, ::-1]])
    codes = np.unique(both[:, 1].astype(np.int64) * nodes + both[:, 0])
    reverse = np.unique(codes % nodes * nodes + codes // nodes)
    graph = Graph(
        nodes,
        (codes % nodes).astype(np.int32),
        (codes // nodes).astype(np.int32),
        directed=not np.array_equal(codes, reverse),
        name=name,
    )
    if not disconnected:
        require_connected(graph)
    return graph


def from_adjacency(
    adjacency: Float[np.ndarray, "n n"], *, disconnected: bool = False, name: str = "adjacency"
) -> Graph:
    """A graph from an adjacency matrix: node i hears node j where `adjacency[i, j]` is not 0.

    Args:
      adjacency: `[n, n]` booleans or finite numbers >= 0, an array or a `scipy.sparse` matrix. The
        diagonal is ignored. The graph is directed when the pattern is not symmetric.
      disconnected: whether a graph in which some node cannot reach another is accepted.
      name: for tables and figures.

    Returns:
      The `Graph`.

    Raises:
      TypeError: entries that are no numbers.
      ValueError: a matrix that is not square, a negative entry, NaN or infinity, or a graph that is
        not (strongly) connected.
    """
    matrix = adjacency if hasattr(adjacency, "tocoo") else np.asarray(adjacency)
    entries = matrix.tocoo().data if hasattr(matrix, "tocoo") else matrix
    if entries.size and entries.dtype != bool:
        validation.real("adjacency", entries, low=0.0, fix="Write 0 where there is no edge.")
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"adjacency must be square, [n, n], got shape {matrix.shape}.")
    receivers, senders = matrix.nonzero()
    pairs = np.stack([senders, receivers], axis=1)[senders != receivers]
    return from_edges(matrix.shape[0], pairs, directed=True, disconnected=disconnected, name=name)


def from_shifts(
    shape: tuple[int, ...],
    shifts: tuple[tuple[int, ...], ...],
    name: str,
    *,
    disconnected: bool = False,
) -> Graph:
    """The graph of translations of a periodic grid: point p sends to p + s for every shift s.

    It is the Cayley graph of the group Z_a x Z_b x ... of the sides. One side gives the circulant
    graphs. Mixing on it is a sum of rolls, and its spectrum a Fourier transform.

    Args:
      shape: the grid's sides, each >= 1; n is their product. Points are numbered in row-major order.
      shifts: translations, one integer per side. Shifts that are equal modulo the sides count once,
        those that are zero do not count.
      name: for tables and figures.
      disconnected: whether a graph in which some node cannot reach another is accepted.

    Returns:
      The `Graph`.

    Raises:
      ValueError: a side below 1, a shift of the wrong length, or a graph that is not connected.
    """
    for side in shape:
        validation.integer("shape", side, low=1)
    if any(len(shift) != len(shape) for shift in shifts):
        raise ValueError(
            f"shifts must have {len(shape)} integers each (one per side), got {shifts}."
        )
    reduced = dict.fromkeys(
        tuple(int(s) % side for s, side in zip(shift, shape, strict=True)) for shift in shifts
    )
    kept = tuple(shift for shift in reduced if any(shift))
    opposite = {tuple(-s % side for s, side in zip(shift, shape, strict=True)) for shift in kept}
    nodes = int(np.prod(shape))
    points = np.arange(nodes, dtype=np.int32).reshape(shape)
    axes = tuple(range(len(shape)))
    heard = [np.roll(points, shift, axes).reshape(-1) for shift in kept]
    graph = Graph(
        nodes,
        np.stack(heard, axis=1).reshape(-1) if heard else np.zeros(0, np.int32),
        np.repeat(np.arange(nodes, dtype=np.int32), len(kept)),
        directed=opposite != set(kept),
        name=name,
        shape=tuple(int(side) for side in shape),
        shifts=kept,
    )
    if not disconnected:
        require_connected(graph)
    return graph


def require_graph(graph: Graph) -> None:
    """Refuse anything that is not a graph."""
    fix = "Make one with dflax.topology, for example ring(20) or from_adjacency(array)."
    validation.instance("graph", graph, Graph, fix)


# What to do where no argument lets a graph through that is not connected.
CONNECT = "Add edges between them, or run on each component alone."


def require_connected(
    graph: Graph,
    name: str | None = None,
    fix: str = "Add edges between them, or pass disconnected=True if models must not spread.",
) -> None:
    """Refuse a graph in which some node cannot reach another.

    Args:
      graph: any.
      name: of the argument; default the graph's own.
      fix: what to do.

    Raises:
      TypeError: no graph.
      ValueError: more than one component.
    """
    require_graph(graph)
    if graph.connected:
        return
    labels = graph.components
    sizes = np.bincount(labels)
    shown = [np.flatnonzero(labels == c)[:5].tolist() for c in np.argsort(-sizes)[:4]]
    kind = "strongly connected" if graph.directed else "connected"
    raise ValueError(
        f"{name or graph.name} must be {kind}, got {len(sizes)} components of sizes "
        f"{sorted(sizes.tolist(), reverse=True)[:8]}, the largest of which begin with the nodes "
        f"{shown}. {fix}"
    )


def require_connected_together(argument: str, graphs: Sequence[Graph]) -> None:
    """Refuse graphs of one size over whose edges, all taken together, some node cannot reach another."""
    if any(graph.connected for graph in graphs):
        return
    edges = [np.stack([graph.senders, graph.receivers], axis=1) for graph in graphs]
    require_connected(
        from_edges(
            graphs[0].nodes, np.concatenate(edges), directed=True, disconnected=True, name=argument
        )
    )


def require_undirected(graph: Graph, purpose: str) -> None:
    """Refuse a directed graph where only undirected ones make sense."""
    require_graph(graph)
    if graph.directed:
        raise ValueError(
            f"{purpose} must be given an undirected graph, got the directed {graph.name}. Add every "
            "edge's reverse; to average over a directed graph use gossip.push_sum or, if it is "
            "regular, the uniform weights."
        )
