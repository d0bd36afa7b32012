"""The grid spectral mixture product kernel, in the way that suits its inputs."""

from typing import Literal

import numpy as np

from dflax import validation
from dflax.gaussian_processes.even import even
from dflax.gaussian_processes.factored import factored
from dflax.gaussian_processes.grid import Grid, check_grid
from dflax.gaussian_processes.kernel import MultipleKernel
from dflax.gaussian_processes.lagged import lagged
from dflax.gaussian_processes.stored import recomputed, stored

# Above so many features a component, components are computed again instead.
MOST_FEATURES = 16


def gsmp(
    grid: Grid,
    *,
    mode: Literal["stored", "recomputed", "factored", "lagged", "even"] | None = None,
    chunk: int = 16,
    reach: float | None = None,
) -> MultipleKernel:
    """The grid spectral mixture product kernel, in one of five ways that give the same numbers.

        k_a(x, x') = prod_p exp(-2 pi^2 t_p^2 s_ap^2) cos(2 pi t_p m_ap),  t = x - x'

    with frequencies m and deviations s of the grid. k_a(x, x) = 1, and with theta >= 0 the kernel is
    positive semi-definite. For n inputs of an agent the ways cost, beside the Cholesky factor of C:

    - "stored": memory A n^2, and a pass over it for C, and another for the traces.
    - "recomputed": the same passes over components that are computed anew, `chunk` of them at a time.
    - "factored": where all components have the same deviations, their Gaussian factor E is common and
      cosines are products of 2^P features: C = E * (F theta F') + noise. Products of n^2 A 2^P
      operations, memory n A 2^P.
    - "lagged": inputs in one dimension, at most `reach` apart, and the same deviations of all. An entry
      of C is read off a table over the lags: 2 to 4 n^2 operations, and operations and memory of about
      A `reach`; the traces are the transpose, of the inverse of C. To 2e-7 in float32, 1e-12 in float64.
    - "even": inputs in one dimension at equal distances. C is a Toeplitz matrix: A n operations, the
      inverse's diagonal sums from one solution (Gohberg and Semencul).

    Args:
      grid: frequencies and deviations.
      mode: which; None: factored where deviations agree and 2^P <= 16, recomputed elsewhere.
      chunk: components at a time, of the recomputed way.
      reach: > 0, the largest distance of two inputs of an agent, of the lagged way.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Suwandi et al., Sparsity-Aware Distributed Learning for Gaussian Processes with Linear Multiple
      Kernel, arXiv 2309.08201.
    """
    check_grid(grid)
    if mode is not None:
        validation.choice("mode", mode, ("stored", "recomputed", "factored", "lagged", "even"))
    validation.integer("chunk", chunk, low=1)
    if reach is not None:
        validation.real("reach", reach, low=0.0, low_open=True, scalar=True)
        if mode != "lagged":
            raise ValueError(
                f'reach must be None where mode is {mode!r}, got {reach}. It is of mode "lagged".'
            )
    dimensions = grid.means.shape[1]
    deviations = np.asarray(grid.deviations)
    alike = bool(np.all(deviations == deviations[:1]))
    if mode is None:
        mode = "factored" if alike and 2**dimensions <= MOST_FEATURES else "recomputed"
    if mode in ("factored", "lagged") and not alike:
        raise ValueError(
            f'mode "{mode}" needs the same deviations of all components, got from '
            f'{deviations.min():g} to {deviations.max():g}. Take "recomputed".'
        )
    if mode in ("lagged", "even") and dimensions != 1:
        raise ValueError(f'mode "{mode}" needs inputs in one dimension, got {dimensions}.')
    if mode == "lagged":
        if reach is None:
            raise ValueError('reach must be given for mode "lagged", got None.')
        return lagged(grid, float(reach))
    if mode == "recomputed":
        return recomputed(grid, chunk)
    return {"stored": stored, "factored": factored, "even": even}[mode](grid)
