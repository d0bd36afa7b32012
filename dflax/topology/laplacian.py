"""The Laplacian of a graph whose links communicate at rates: chi_1, chi_2, effective resistances."""

import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.topology.graph import CONNECT, Graph, require_connected, require_undirected

LARGEST_DENSE = 3000


def laplacian(
    graph: Graph, rates: float | Float[np.ndarray, " m"] = 1.0
) -> Float[np.ndarray, "n n"]:
    """`Lambda = sum over links (i, j) of rate_ij (e_i - e_j)(e_i - e_j)'`, dense.

    Args:
      graph: an undirected graph of at most 3000 nodes.
      rates: communications per unit of time, > 0: one for all links, or `[m]` in the order of
        `graph.links`. `1 / len(graph.links)` gives unit total rate.

    Returns:
      `[n, n]` float64, positive semi-definite, rows that sum to 0.

    Raises:
      ValueError: a directed graph, too many nodes, rates of the wrong shape or not positive.
    """
    given = _rates(graph, rates)
    validation.integer("nodes", graph.nodes, low=1, high=LARGEST_DENSE)
    first, second = graph.links.T
    matrix = np.zeros((graph.nodes, graph.nodes))
    matrix[first, second] = matrix[second, first] = -given
    np.fill_diagonal(matrix, -matrix.sum(1))
    return matrix


def chi_1(graph: Graph, rates: float | Float[np.ndarray, " m"] = 1.0) -> float:
    """`1 / (smallest positive eigenvalue of Lambda)`: the time in which gossip at these rates mixes.

    Args:
      graph: an undirected, connected graph: of any size when it is made of shifts and has one rate,
        else of at most 3000 nodes.
      rates: as for `laplacian`.

    Returns:
      chi_1 > 0.

    Raises:
      ValueError: a directed or disconnected graph, too many nodes, bad rates.

    References:
      Nabli & Oyallon, DADAO, arXiv 2208.00779; Even et al., Continuized, arXiv 2106.07644.
    """
    require_connected(graph, "graph", CONNECT)
    if _translation_invariant(graph, rates):
        positive = _fourier(graph, float(rates)).reshape(-1)[1:]
    else:
        positive = np.linalg.eigvalsh(laplacian(graph, rates))[1:]
    return float(1.0 / positive.min())


def chi_2(graph: Graph, rates: float | Float[np.ndarray, " m"] = 1.0) -> float:
    """Half the largest effective resistance of a link; never more than chi_1.

    Arguments, errors and references are those of `chi_1`.
    """
    return float(effective_resistances(graph, rates).max() / 2)


def effective_resistances(
    graph: Graph, rates: float | Float[np.ndarray, " m"] = 1.0
) -> Float[np.ndarray, " m"]:
    """`R_ij = (e_i - e_j)' Lambda^+ (e_i - e_j)` of every link, in the order of `graph.links`.

    With the rates as conductances, R_ij is the resistance between the ends of a link, and
    `sum_ij rate_ij R_ij = n - 1` (Foster).

    Arguments and errors are those of `chi_1`.

    Returns:
      `[m]` float64, > 0.
    """
    require_connected(graph, "graph", CONNECT)
    first, second = graph.links.T
    if _translation_invariant(graph, rates):
        values = _fourier(graph, float(rates))
        inverse = np.zeros_like(values)
        np.divide(1.0, values, out=inverse, where=np.arange(values.size).reshape(values.shape) > 0)
        green = np.fft.ifftn(inverse).real
        points = np.stack(np.unravel_index(np.stack([first, second]), values.shape))
        step = tuple((points[:, 1] - points[:, 0]) % np.array(values.shape)[:, None])
        return 2.0 * (green.reshape(-1)[0] - green[step])
    inverse = np.linalg.pinv(laplacian(graph, rates), hermitian=True)
    return inverse[first, first] + inverse[second, second] - 2.0 * inverse[first, second]


def _translation_invariant(graph: Graph, rates: float | np.ndarray) -> bool:
    _rates(graph, rates)
    return graph.shape is not None and np.ndim(rates) == 0


def _fourier(graph: Graph, rate: float) -> np.ndarray:
    """Eigenvalues of Lambda on the grid of wave numbers; the first, 0, is the constant vector's."""
    assert graph.shape is not None
    assert graph.shifts is not None
    kernel = np.zeros(graph.shape)
    for shift in graph.shifts:
        kernel[shift] -= rate
    kernel[(0,) * kernel.ndim] = rate * len(graph.shifts)
    return np.fft.fftn(kernel).real


def _rates(graph: Graph, rates: float | np.ndarray) -> np.ndarray:
    require_undirected(graph, "laplacian")
    validation.real("rates", rates, low=0.0, low_open=True)
    given = np.asarray(rates, np.float64)
    links = len(graph.links)
    if given.ndim and given.shape != (links,):
        raise ValueError(
            f"rates must be one number or have shape [{links}], one per row of graph.links, got shape "
            f"{given.shape}."
        )
    return np.broadcast_to(given, (links,))
