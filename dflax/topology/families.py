"""The named graphs of decentralized learning."""

import math
from collections.abc import Sequence

import numpy as np

from dflax import validation
from dflax.topology.graph import Graph, from_edges, from_shifts

# Its n (n - 1) edges are numbered in 32 bits.
LARGEST_COMPLETE = math.isqrt(validation.LARGEST_COUNT)


def ring(nodes: int, *, directed: bool = False) -> Graph:
    """The cycle: i and i + 1 (mod n) are linked; directed: i only sends to i + 1.

    Examples:
      >>> import dflax as dx
      >>> graph = dx.topology.ring(5)
      >>> graph.nodes, graph.in_degrees.tolist()
      (5, [2, 2, 2, 2, 2])
    """
    validation.integer("nodes", nodes, low=2)
    validation.flag("directed", directed)
    shifts = ((1,),) if directed else ((1,), (-1,))
    return from_shifts((nodes,), shifts, f"{'directed ' if directed else ''}ring of {nodes}")


def path(nodes: int) -> Graph:
    """The line 0 - 1 - ... - (n-1)."""
    validation.integer("nodes", nodes, low=2)
    first = np.arange(nodes - 1)
    return from_edges(nodes, np.stack([first, first + 1], axis=1), name=f"path of {nodes}")


def torus(rows: int, columns: int) -> Graph:
    """The periodic grid: node `r columns + c` is linked to its four neighbours in row and column.

    Examples:
      >>> import dflax as dx
      >>> dx.topology.torus(3, 4).in_degrees.tolist()[:3]
      [4, 4, 4]
    """
    validation.integer("rows", rows, low=2)
    validation.integer("columns", columns, low=2)
    shifts = ((1, 0), (-1, 0), (0, 1), (0, -1))
    return from_shifts((rows, columns), shifts, f"torus of {rows} x {columns}")


def hypercube(nodes: int) -> Graph:
    """Nodes are linked when their numbers differ in one bit; n is a power of two."""
    validation.integer("nodes", nodes, low=2)
    bits = int(nodes).bit_length() - 1
    if 1 << bits != nodes:
        raise ValueError(
            f"nodes must be a power of two for a hypercube, got {nodes}. Use {1 << bits} or "
            f"{2 << bits} nodes, or the exponential graph, which takes any number."
        )
    shifts = tuple(tuple(int(axis == bit) for axis in range(bits)) for bit in range(bits))
    return from_shifts((2,) * bits, shifts, f"hypercube of {nodes}")


def star(nodes: int) -> Graph:
    """Node 0 is linked to every other node.

    Examples:
      >>> import dflax as dx
      >>> dx.topology.star(4).in_degrees.tolist()
      [3, 1, 1, 1]
    """
    validation.integer("nodes", nodes, low=2)
    leaves = np.arange(1, nodes)
    pairs = np.stack([np.zeros_like(leaves), leaves], axis=1)
    return from_edges(nodes, pairs, name=f"star of {nodes}")


def complete_bipartite(first: int, second: int) -> Graph:
    """Each of `first` nodes is linked to each of the `second` last ones, none within its own group.

    With `max_degree` weights and two last nodes, both of them hubs of all others, this is the "bipar"
    topology of decentralized merging (DIMAT): weights 1 / (n - 1) along all links.

    Args:
      first: nodes 0, ..., first - 1; >= 1.
      second: the nodes after them; >= 1.

    Returns:
      The `Graph` of first + second nodes and first * second links.

    Raises:
      ValueError: an empty group.
    """
    validation.integer("first", first, low=1)
    fix = "All first * second links are listed, numbered in 32 bits."
    validation.integer("second", second, low=1, high=validation.LARGEST_COUNT // first, fix=fix)
    left, right = np.meshgrid(np.arange(first), first + np.arange(second), indexing="ij")
    pairs = np.stack([left.ravel(), right.ravel()], axis=1)
    name = f"complete bipartite graph of {first} and {second}"
    return from_edges(first + second, pairs, name=name)


def complete(nodes: int) -> Graph:
    """Every two nodes are linked: n (n-1) edges (`gossip.complete` averages without listing them).

    Examples:
      >>> import dflax as dx
      >>> dx.topology.complete(4).in_degrees.tolist()
      [3, 3, 3, 3]
    """
    fix = "gossip.complete(n) averages any number of nodes without listing their edges."
    validation.integer("nodes", nodes, low=2, high=LARGEST_COMPLETE, fix=fix)
    shifts = tuple((offset,) for offset in range(1, nodes))
    return from_shifts((nodes,), shifts, f"complete graph of {nodes}")


def exponential(nodes: int) -> Graph:
    """The static exponential graph: i sends to i + 1, i + 2, i + 4, ... (mod n), offsets below n.

    It is directed and regular, so its uniform weights are doubly stochastic. Its spectral gap is
    `2 / (1 + ceil(log2 n))` for even n and larger for odd n.

    Args:
      nodes: n >= 2.

    Returns:
      The circulant `Graph` with ceil(log2 n) out-neighbours a node.

    Raises:
      ValueError: fewer than two nodes.

    Examples:
      >>> import dflax as dx
      >>> dx.topology.exponential(8).shifts
      ((1,), (2,), (4,))

    References:
      Ying et al., Exponential Graph is Provably Efficient for Decentralized Deep Training,
      arXiv 2110.13363.
    """
    validation.integer("nodes", nodes, low=2)
    shifts = tuple((offset,) for offset in exponential_offsets(nodes))
    return from_shifts((nodes,), shifts, f"exponential graph of {nodes}")


def circulant(nodes: int, offsets: Sequence[int], *, directed: bool = False) -> Graph:
    """Node i sends to i + o (mod n) for each offset o, and to i - o unless directed."""
    validation.integer("nodes", nodes, low=2)
    validation.flag("directed", directed)
    fix = "Pass for example (1, 2)."
    for place, offset in enumerate(validation.sequence("offsets", offsets, "integers", fix=fix)):
        validation.integer(f"offsets[{place}]", offset, low=1 - nodes, high=nodes - 1)
    both = tuple(offsets) if directed else (*offsets, *(-offset for offset in offsets))
    kind = "directed circulant" if directed else "circulant"
    return from_shifts((nodes,), tuple((o,) for o in both), f"{kind} {tuple(offsets)} of {nodes}")


def exponential_offsets(nodes: int) -> tuple[int, ...]:
    """The powers of two below n >= 1: 1, 2, 4, ..., ceil(log2 n) of them."""
    validation.integer("nodes", nodes, low=1)
    return tuple(1 << bit for bit in range((nodes - 1).bit_length()))
