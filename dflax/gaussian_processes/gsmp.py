"""The grid spectral mixture product kernel, in the way that suits its inputs."""

from typing import Literal

import numpy as np

from dflax import validation
from dflax.gaussian_processes.even import even
from dflax.gaussian_processes.factored import factored
from dflax.gaussian_processes.grid import Grid, check_grid
from dflax.gaussian_processes.kernel import MultipleKernel
from dflax.gaussian_processes.stored import recomputed, stored

# Above so many features a component, components are computed again instead.
MOST_FEATURES = 16


def gsmp(
    grid: Grid,
    *,
    mode: Literal["stored", "recomputed", "factored", "even"] | None = None,
    chunk: int = 16,
) -> MultipleKernel:
    """The grid spectral mixture product kernel, in one of four ways that give the same numbers.

        k_a(x, x') = prod_p exp(-2 pi^2 t_p^2 s_ap^2) cos(2 pi t_p m_ap),  t = x - x'

    with frequencies m and deviations s of the grid. k_a(x, x) = 1, and with theta >= 0 the kernel is
    positive semi-definite. For n inputs of an agent the ways cost, beside the Cholesky factor of C:

    - "stored": memory A n^2, and a pass over it for C, and another for the traces.
    - "recomputed": the same passes over components that are computed anew, `chunk` of them at a time.
    - "factored": where all components have the same deviations, their Gaussian factor E is common and
      cosines are products of 2^P features: C = E * (F theta F') + noise. Products of n^2 A 2^P
      operations, memory n A 2^P.
    - "even": inputs in one dimension at equal distances. C is a Toeplitz matrix: A n operations, the
      inverse's diagonal sums from one solution (Gohberg and Semencul).

    Args:
      grid: frequencies and deviations.
      mode: which; None: factored where deviations agree and 2^P <= 16, recomputed elsewhere.
      chunk: components at a time, of the recomputed way.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Suwandi et al., Sparsity-Aware Distributed Learning for Gaussian Processes with Linear Multiple
      Kernel, arXiv 2309.08201.
    """
    check_grid(grid)
    if mode is not None:
        validation.choice("mode", mode, ("stored", "recomputed", "factored", "even"))
    validation.integer("chunk", chunk, low=1)
    dimensions = grid.means.shape[1]
    deviations = np.asarray(grid.deviations)
    alike = bool(np.all(deviations == deviations[:1]))
    if mode is None:
        mode = "factored" if alike and 2**dimensions <= MOST_FEATURES else "recomputed"
    if mode == "factored" and not alike:
        raise ValueError(
            'mode "factored" needs the same deviations of all components, got from '
            f'{deviations.min():g} to {deviations.max():g}. Take "recomputed".'
        )
    if mode == "even" and dimensions != 1:
        raise ValueError(f'mode "even" needs inputs in one dimension, got {dimensions}.')
    if mode == "recomputed":
        return recomputed(grid, chunk)
    return {"stored": stored, "factored": factored, "even": even}[mode](grid)
