"""Mixing matrices: how much weight a node gives to each model it hears."""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dflax import validation
from dflax.topology.graph import (
    Graph,
    from_adjacency,
    require_connected,
    require_graph,
    require_undirected,
)

TOLERANCE = 1e-6
LARGEST_DENSE = 1 << 13


@dataclasses.dataclass(frozen=True, eq=False)
class MixingMatrix:
    """W, `[n, n]`, kept as one weight per edge of its graph: `x_i <- w_ii x_i + sum_j w_ij x_j`.

    Built by `metropolis`, `max_degree`, `uniform`, `column_stochastic`, `from_dense` or `lazy`.

    Attributes:
      graph: the graph of its off-diagonal entries.
      weights: `[E]` float64, the weight of each edge, at (receiver, sender).
      self_weights: `[n]` float64, the diagonal.
    """

    graph: Graph
    weights: Float[np.ndarray, " E"]
    self_weights: Float[np.ndarray, " n"]

    @property
    def nodes(self) -> int:
        """Number of nodes n."""
        return self.graph.nodes

    @functools.cached_property
    def row_stochastic(self) -> bool:
        """Whether all rows sum to 1, so that agreement is kept."""
        return _near_one(self.sparse().sum(1))

    @functools.cached_property
    def column_stochastic(self) -> bool:
        """Whether all columns sum to 1, so that the mean is kept."""
        return _near_one(self.sparse().sum(0))

    @property
    def doubly_stochastic(self) -> bool:
        """Whether both rows and columns sum to 1."""
        return self.row_stochastic and self.column_stochastic

    @functools.cached_property
    def symmetric(self) -> bool:
        """Whether W equals its transpose."""
        matrix = self.sparse()
        difference = abs(matrix - matrix.T)
        return difference.nnz == 0 or float(difference.max()) <= TOLERANCE

    @functools.cached_property
    def shift_weights(self) -> Float[np.ndarray, " k+1"] | None:
        """The own weight and that of each of the graph's k shifts; None when they vary over nodes."""
        if self.graph.shifts is None:
            return None
        rows = self.weights.reshape(self.nodes, len(self.graph.shifts))
        rows = np.concatenate([self.self_weights[:, None], rows], axis=1)
        return rows[0] if np.allclose(rows, rows[0], rtol=0, atol=1e-12) else None

    @property
    def averages(self) -> bool:
        """Whether W = 11'/n: one mixing gives everyone the exact average."""
        weight = self.shared_weight
        return weight is not None and abs(weight - 1 / self.nodes) <= 1e-12

    @functools.cached_property
    def shared_weight(self) -> float | None:
        """The b > 0 of `W = (1 - n b) I + b 11'`: everyone hears everyone alike; else None."""
        if len(self.weights) != self.nodes * (self.nodes - 1):
            return None
        weight = float(self.weights[0]) if len(self.weights) else 1.0
        own = 1 - (self.nodes - 1) * weight
        alike = [
            np.allclose(entries, expected, rtol=0, atol=1e-12)
            for entries, expected in ((self.weights, weight), (self.self_weights, own))
        ]
        return weight if weight > 0 and all(alike) else None

    def slots(self) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """Neighbours and weights as tables `[n, k]`, k the largest in-degree.

        Nodes with fewer neighbours fill up with themselves at weight 0.
        """
        place, most = self.graph.slots()
        neighbours = np.repeat(np.arange(self.nodes, dtype=np.int32)[:, None], most, axis=1)
        weights = np.zeros((self.nodes, most))
        neighbours[self.graph.receivers, place] = self.graph.senders
        weights[self.graph.receivers, place] = self.weights
        return neighbours, weights

    def sparse(self) -> Any:
        """W as a `scipy.sparse` CSR matrix."""
        from scipy import sparse

        return (self.graph.sparse(self.weights) + sparse.diags_array(self.self_weights)).tocsr()

    def dense(self) -> Float[np.ndarray, "n n"]:
        """W as a float64 array, for n up to 8192.

        Raises:
          ValueError: too many nodes.
        """
        validation.integer(
            "nodes",
            self.nodes,
            low=1,
            high=LARGEST_DENSE,
            fix="Use sparse() or slots() beyond that.",
        )
        matrix = np.zeros((self.nodes, self.nodes))
        matrix[self.graph.receivers, self.graph.senders] = self.weights
        np.fill_diagonal(matrix, self.self_weights)
        return matrix


def metropolis(graph: Graph) -> MixingMatrix:
    """Metropolis–Hastings weights: `w_ij = 1 / (1 + max(d_i, d_j))`, `w_ii = 1 - sum_j w_ij`.

    Symmetric and doubly stochastic on every undirected graph, and each node needs only the degrees
    of its neighbours.

    Args:
      graph: an undirected graph.

    Returns:
      The `MixingMatrix`.

    Raises:
      ValueError: a directed graph.

    Examples:
      >>> import dflax as dx
      >>> matrix = dx.topology.metropolis(dx.topology.path(3))
      >>> matrix.sparse().toarray().round(2).tolist()
      [[0.67, 0.33, 0.0], [0.33, 0.33, 0.33], [0.0, 0.33, 0.67]]

    References:
      Xiao, Boyd & Kim, Distributed average consensus with least-mean-square deviation, JPDC 67, 2007.
    """
    require_undirected(graph, "metropolis")
    degrees = graph.in_degrees
    larger = np.maximum(degrees[graph.senders], degrees[graph.receivers])
    return _filled(graph, 1.0 / (1.0 + larger))


def max_degree(graph: Graph) -> MixingMatrix:
    """Max-degree weights: `w_ij = 1 / (1 + max_k d_k)`, `w_ii = 1 - sum_j w_ij`; symmetric.

    Args:
      graph: an undirected graph.

    Returns:
      The `MixingMatrix`.

    Raises:
      ValueError: a directed graph.
    """
    require_undirected(graph, "max_degree")
    most = graph.in_degrees.max()
    return _filled(graph, np.full(len(graph.senders), 1.0 / (1.0 + most)))


def uniform(
    graph: Graph, *, self_weight: float | None = None, row_stochastic: bool = False
) -> MixingMatrix:
    """A plain mean over oneself and those one hears: `w_ij = w_ii = 1 / (1 + d_i)`.

    With a weight beta of its own for oneself, `w_ii = beta` and `w_ij = (1 - beta) / d_i`. Doubly
    stochastic on regular graphs, directed ones included; elsewhere only the rows sum to 1 and the
    mean of the models drifts towards the nodes that are heard most.

    Args:
      graph: any graph.
      self_weight: beta in [0, 1]; 0 is the mean over the neighbours alone. None weighs oneself as one
        of them. A node that hears nobody keeps its own.
      row_stochastic: whether a matrix that does not keep the mean is accepted.

    Returns:
      The `MixingMatrix`.

    Raises:
      ValueError: columns that do not sum to 1, unless `row_stochastic`; beta out of range.
    """
    require_graph(graph)
    validation.flag("row_stochastic", row_stochastic)
    degrees = graph.in_degrees[graph.receivers]
    if self_weight is None:
        matrix = _filled(graph, 1.0 / (1.0 + degrees))
    else:
        validation.probability("self_weight", self_weight)
        matrix = _filled(graph, (1.0 - float(self_weight)) / degrees)
    if not row_stochastic:
        _require_columns(matrix, f"uniform weights on {graph.name}")
    return matrix


def column_stochastic(graph: Graph) -> MixingMatrix:
    """What push-sum sends: `a_ij = 1 / (1 + out-degree of j)`, so that every column sums to 1."""
    require_graph(graph)
    shares = 1.0 / (1.0 + graph.out_degrees)
    return MixingMatrix(graph, shares[graph.senders], shares)


def lazy(matrix: MixingMatrix) -> MixingMatrix:
    """`(I + W) / 2`: every eigenvalue of a symmetric W moves to [0, 1]."""
    require_matrix("matrix", matrix)
    return MixingMatrix(matrix.graph, matrix.weights / 2, (1.0 + matrix.self_weights) / 2)


def from_dense(
    matrix: Float[np.ndarray, "n n"],
    *,
    row_stochastic: bool = False,
    disconnected: bool = False,
    name: str = "mixing matrix",
) -> MixingMatrix:
    """A mixing matrix of one's own.

    Args:
      matrix: `[n, n]`, entries >= 0, rows that sum to 1, and columns too unless `row_stochastic`.
      row_stochastic: whether a matrix that does not keep the mean is accepted.
      disconnected: whether a matrix over whose positive entries some node cannot reach another is
        accepted, such as one round of a schedule.
      name: for messages, tables and figures.

    Returns:
      The `MixingMatrix`.

    Raises:
      TypeError: entries that are no numbers.
      ValueError: a matrix that is not square, a negative entry, a row or column that does not sum to
        1, or a graph that is not (strongly) connected.
    """
    validation.flag("row_stochastic", row_stochastic)
    validation.flag("disconnected", disconnected)
    validation.text("name", name)
    validation.real(name, matrix)
    values = np.asarray(matrix, np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not values.size:
        raise ValueError(f"{name} must be square, [n, n] with n >= 1, got shape {values.shape}.")
    if values.min() < 0:
        i, j = np.unravel_index(values.argmin(), values.shape)
        raise ValueError(
            f"{name} must have entries >= 0, got {values[i, j]:g} at ({i}, {j}). Take lazy weights, or "
            "gossip.chebyshev if the negative weights were meant to mix faster."
        )
    graph = from_adjacency(values, disconnected=True, name=name)
    result = MixingMatrix(graph, values[graph.receivers, graph.senders], np.diagonal(values).copy())
    if not result.row_stochastic:
        sums = values.sum(1)
        worst = int(np.abs(sums - 1).argmax())
        raise ValueError(
            f"{name} must have rows that sum to 1, got {sums[worst]:g} in row {worst}. Divide each row "
            "by its sum, or use gossip.push_sum for a column-stochastic matrix."
        )
    if not row_stochastic:
        _require_columns(result, name)
    if not disconnected:
        require_connected(graph)
    return result


def require_matrix(name: str, matrix: MixingMatrix) -> None:
    """Refuse anything that is not a mixing matrix."""
    if isinstance(matrix, Graph):
        fix = "A graph has no weights yet: take some first, such as topology.metropolis(graph)."
    else:
        fix = "Make one with topology.metropolis(graph) or topology.from_dense(array)."
    validation.instance(name, matrix, MixingMatrix, fix)


def _filled(graph: Graph, weights: Float[np.ndarray, " E"]) -> MixingMatrix:
    """The diagonal takes what the rows leave."""
    given = np.bincount(graph.receivers, weights=weights, minlength=graph.nodes)
    return MixingMatrix(graph, weights, 1.0 - given)


def _require_columns(matrix: MixingMatrix, name: str) -> None:
    if matrix.column_stochastic:
        return
    sums = np.asarray(matrix.sparse().sum(0)).reshape(-1)
    worst = int(np.abs(sums - 1).argmax())
    raise ValueError(
        f"{name} must have columns that sum to 1 so that mixing keeps the mean, got {sums[worst]:g} in "
        f"column {worst}. Use the metropolis weights, or pass row_stochastic=True to let the mean drift."
    )


def _near_one(sums: Any) -> bool:
    return bool(np.allclose(np.asarray(sums), 1.0, rtol=0, atol=TOLERANCE))
