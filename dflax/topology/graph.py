"""Communication graphs as host arrays of directed edges."""

import dataclasses
import functools
import math
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
        # Of indices of 64 bits older versions of csgraph make an error.
        index = np.int32 if len(self.senders) < 2**31 else np.int64
        columns, rows = self.senders.astype(index), rows.astype(index)
        return sparse.csr_array((values, columns, rows), shape=(self.nodes, self.nodes))

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

    Examples:
      >>> import dflax as dx
      >>> graph = dx.topology.from_edges(3, [[0, 1], [1, 2]])
      >>> graph.in_degrees.tolist()
      [1, 2, 1]
    """
    validation.integer("nodes", nodes, low=1)
    validation.flag("directed", directed)
    validation.flag("disconnected", disconnected)
    validation.text("name", name)
    if isinstance(edges, Sequence | np.ndarray) and len(edges) == 0:
        edges = np.zeros((0, 2), np.int64)
    fix = "Each row is a pair of node numbers."
    pairs = validation.array("edges", edges, kind="integer", fix=fix)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"edges must have shape [E, 2], got {pairs.shape}. {fix}")
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
    validation.flag("disconnected", disconnected)
    validation.text("name", name)
    matrix = adjacency if hasattr(adjacency, "tocoo") else _entries(adjacency)
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"adjacency must be square, [n, n], got shape {matrix.shape}.")
    if hasattr(matrix, "tocoo"):
        _entries(matrix.tocoo().data)
    receivers, senders = matrix.nonzero()
    pairs = np.stack([senders, receivers], axis=1)[senders != receivers]
    return from_edges(matrix.shape[0], pairs, directed=True, disconnected=disconnected, name=name)


def _entries(values: Any) -> np.ndarray:
    """Entries of an adjacency matrix: booleans, or numbers >= 0."""
    if np.issubdtype(getattr(values, "dtype", np.float64), np.bool_):
        return np.asarray(values)
    fix = "Write 0 where there is no edge."
    return validation.array("adjacency", values, kind="real", low=0.0, fix=fix)


def from_shifts(
    shape: Sequence[int],
    shifts: Sequence[Sequence[int]],
    name: str,
    *,
    disconnected: bool = False,
) -> Graph:
    """The graph of translations of a periodic grid: point p sends to p + s for every shift s.

    It is the Cayley graph of the group Z_a x Z_b x ... of the sides. One side gives the circulant
    graphs. Mixing on it is a sum of rolls, and its spectrum a Fourier transform.

    Args:
      shape: the grid's sides, each >= 1; n is their product. Points are numbered in row-major order.
      shifts: at least one translation, one integer per side. Those that are equal modulo the sides
        count once, those that are zero do not count.
      name: for tables and figures.
      disconnected: whether a graph in which some node cannot reach another is accepted.

    Returns:
      The `Graph`.

    Raises:
      TypeError, ValueError: a side below 1, no shifts, one of the wrong length, more edges than 32
        bits number, or a graph that is not connected.
    """
    validation.text("name", name)
    validation.flag("disconnected", disconnected)
    sides = validation.sequence("shape", shape, "integers", fix="For example (4, 5) for a grid.")
    for place, side in enumerate(sides):
        validation.integer(f"shape[{place}]", side, low=1)
    fix = f"Each shift has {len(sides)} integers, one per side."
    given = validation.array(
        "shifts", shifts, kind="integer", shape=("k", len(sides)), fix=fix
    ).tolist()
    nodes = math.prod(sides)
    if nodes * len(given) > validation.LARGEST_COUNT:
        raise ValueError(
            f"shape must give at most {validation.LARGEST_COUNT} edges, got {nodes} nodes with "
            f"{len(given)} shifts each. Use fewer."
        )
    reduced = dict.fromkeys(
        tuple(s % side for s, side in zip(shift, sides, strict=True)) for shift in given
    )
    kept = tuple(shift for shift in reduced if any(shift))
    opposite = {tuple(-s % side for s, side in zip(shift, sides, strict=True)) for shift in kept}
    points = np.arange(nodes, dtype=np.int32).reshape(sides)
    axes = tuple(range(len(sides)))
    heard = [np.roll(points, shift, axes).reshape(-1) for shift in kept]
    graph = Graph(
        nodes,
        np.stack(heard, axis=1).reshape(-1) if heard else np.zeros(0, np.int32),
        np.repeat(np.arange(nodes, dtype=np.int32), len(kept)),
        directed=opposite != set(kept),
        name=name,
        shape=tuple(int(side) for side in sides),
        shifts=kept,
    )
    if not disconnected:
        require_connected(graph)
    return graph


def require_graph(graph: Graph, name: str = "graph") -> None:
    """Refuse anything that is not a graph."""
    fix = "Make one with dflax.topology, for example ring(20) or from_adjacency(array)."
    validation.instance(name, graph, Graph, fix)


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
