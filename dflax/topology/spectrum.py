"""How fast a mixing matrix mixes: its eigenvalues."""

import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.topology.mixing_matrix import MixingMatrix, require_matrix

LARGEST_DENSE = 1500


def eigenvalues(matrix: MixingMatrix) -> Float[np.ndarray, " n"]:
    """All n eigenvalues of W, by falling real part.

    On rings, tori, hypercubes and every other graph of shifts they are the Fourier transform of the
    weights, `sum_s w_s exp(-2 pi i <k, s>)`, at n log n cost; elsewhere W is made dense.

    Args:
      matrix: W; without shifts, n is at most 1500.

    Returns:
      `[n]` float64 when W is symmetric, else complex128.

    Raises:
      TypeError: anything but a `MixingMatrix`.
      ValueError: too many nodes.
    """
    require_matrix("matrix", matrix)
    if matrix.shift_weights is not None:
        values = _fourier(matrix).reshape(-1)
        values = values.real if matrix.symmetric else values
    else:
        fix = "For more, second_eigenvalue works without a dense matrix."
        validation.integer("nodes", matrix.nodes, low=1, high=LARGEST_DENSE, fix=fix)
        dense = matrix.dense()
        values = np.linalg.eigvalsh(dense) if matrix.symmetric else np.linalg.eigvals(dense)
    return values[np.argsort(-values.real, kind="stable")]


def second_eigenvalue(matrix: MixingMatrix) -> float:
    """`lambda`, the largest modulus among the eigenvalues of W other than its 1.

    For a symmetric W (and every graph of shifts), `|W x - mean| <= lambda |x - mean|` in the
    Euclidean norm. When W is neither, lambda gives the rate of many mixings but bounds no single one.

    Args:
      matrix: a row- or column-stochastic W, of any size. Beyond 1500 nodes and without shifts, a
        Lanczos or Arnoldi iteration on the sparse matrix finds it.

    Returns:
      lambda, in [0, 1]; 1 when the graph is disconnected or W only permutes.

    Raises:
      TypeError: anything but a `MixingMatrix`.
    """
    require_matrix("matrix", matrix)
    if matrix.shift_weights is not None:
        moduli = np.abs(_fourier(matrix)).reshape(-1)
        return float(moduli[1:].max(initial=0.0))
    if matrix.nodes > LARGEST_DENSE:
        return _iterated(matrix)
    values = eigenvalues(matrix)
    others = np.delete(values, np.abs(values - 1.0).argmin())
    return float(np.abs(others).max(initial=0.0))


def spectral_gap(matrix: MixingMatrix) -> float:
    """`1 - lambda`, lambda the second largest modulus of an eigenvalue of W.

    Examples:
      >>> import dflax as dx
      >>> gaps = [dx.topology.spectral_gap(dx.topology.metropolis(dx.topology.ring(n))) for n in (4, 16)]
      >>> [round(gap, 3) for gap in gaps]
      [0.667, 0.051]
    """
    return 1.0 - second_eigenvalue(matrix)


def _fourier(matrix: MixingMatrix) -> np.ndarray:
    """Eigenvalues on the grid of wave numbers; the first is that of the constant vector."""
    graph, weights = matrix.graph, matrix.shift_weights
    assert graph.shape is not None
    assert graph.shifts is not None
    assert weights is not None
    kernel = np.zeros(graph.shape)
    kernel[(0,) * kernel.ndim] = weights[0]
    for shift, weight in zip(graph.shifts, weights[1:], strict=True):
        kernel[shift] += weight
    return np.fft.fftn(kernel)


def _iterated(matrix: MixingMatrix) -> float:
    """The constant vector is deflated where it is on both sides an eigenvector, else asked along."""
    from scipy.sparse import linalg

    weights, nodes = matrix.sparse(), matrix.nodes
    start = np.random.default_rng(0).standard_normal(nodes)
    if matrix.doubly_stochastic:
        deflated = linalg.LinearOperator(
            (nodes, nodes), matvec=lambda x: weights @ x - x.mean(), dtype=np.float64
        )
        solver = linalg.eigsh if matrix.symmetric else linalg.eigs
        found = solver(deflated, k=1, which="LM", v0=start, return_eigenvectors=False)
        return float(np.abs(found).max())
    found = linalg.eigs(weights, k=2, which="LM", v0=start, return_eigenvectors=False)
    return float(np.sort(np.abs(found))[0])
