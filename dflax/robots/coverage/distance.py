"""How far what was visited is from a density: the exact 2-Wasserstein distance."""

import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.data.dataset import AnyArray


def wasserstein(
    visited: Float[AnyArray, "... 2"],
    samples: Float[AnyArray, "N 2"],
    weights: Float[AnyArray, "..."] | None = None,
) -> float:
    """The 2-Wasserstein distance between visited places and sample points, on the host.

    An exact transport problem, solved by POT (extra `transport`).

    Args:
      visited: places `[..., 2]`; those with a NaN were not visited.
      samples: `[N, 2]`, of equal mass.
      weights: `[...]`, mass of each place, >= 0; default all the same.

    Returns:
      The distance, in the units of the places.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: without POT.
    """
    places = np.asarray(visited)
    points = validation.array("samples", samples, kind="real", shape=("N", 2))
    if places.dtype.kind not in "fiu" or places.ndim < 2 or places.shape[-1] != 2:
        raise TypeError(
            "visited must be real numbers of shape [..., 2], got an array of shape "
            f"{places.shape} and dtype {places.dtype}."
        )
    if len(points) < 1:
        raise ValueError("samples must hold at least one point, got none.")
    given = np.ones(places.shape[:-1]) if weights is None else weights
    mass = validation.array("weights", given, kind="real", shape=places.shape[:-1], low=0.0)
    places, mass = (
        places.reshape(-1, 2).astype(np.float64),
        np.asarray(mass, np.float64).reshape(-1),
    )
    there = np.isfinite(places).all(1) & (mass > 0)
    if not there.any():
        raise ValueError("visited must hold a place that was visited, got none.")
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "POT is needed for exact transport. Install it with pip install 'dflax[transport]'."
        ) from error
    places, mass = places[there], mass[there]
    costs = ot.dist(places, np.asarray(points, np.float64), metric="sqeuclidean")
    even = np.full(len(points), 1.0 / len(points))
    return float(np.sqrt(max(ot.emd2(mass / mass.sum(), even, costs, numItermax=10**7), 0.0)))
