"""Frequencies of a spectral mixture on a grid, and the spacing of inputs that they need."""

import warnings
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.data.dataset import AnyArray


class BelowNyquist(UserWarning):
    """Inputs lie so close that the function may vary faster than the highest frequency of the grid.

    Where that is known not to matter, silence it: `warnings.filterwarnings("ignore",
    category=dflax.gaussian_processes.BelowNyquist)`.
    """


class Grid(NamedTuple):
    """Frequencies and widths of A spectral components in P dimensions.

    Attributes:
      means: `[A, P]` frequencies, >= 0.
      deviations: `[A, P]` spectral standard deviations, >= 0; 0 is a pure cosine.
    """

    means: Float[Array, "A P"]
    deviations: Float[Array, "A P"]

    @property
    def highest(self) -> float:
        """The largest frequency."""
        return float(jnp.max(self.means))


def spectral_grid(
    dimensions: int = 1,
    components: int | None = None,
    *,
    sampling: Literal["uniform", "random"] = "uniform",
    deviation: float = 1e-3,
    highest: float = 0.5,
    key: Key[Array, ""] | None = None,
) -> Grid:
    """A components whose number grows with the dimensions and not exponentially in them.

    "uniform" puts component a of every dimension at (a - 1) / (A - 1) `highest`: the diagonal of
    frequency space. "random" draws every frequency from the uniform law on [0, `highest`].

    Args:
      dimensions: P >= 1.
      components: A >= 1; default 500 in one dimension, 100 P in more.
      sampling: of frequencies.
      deviation: of every component, >= 0.
      highest: > 0; 1/2 is the Nyquist frequency of inputs one apart.
      key: for random frequencies.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("dimensions", dimensions, low=1)
    if components is not None:
        validation.integer("components", components, low=1)
    validation.choice("sampling", sampling, ("uniform", "random"))
    validation.real("deviation", deviation, low=0.0, scalar=True)
    validation.real("highest", highest, low=0.0, low_open=True, scalar=True)
    if key is not None:
        validation.typed_key("key", key)
    count = components or (500 if dimensions == 1 else 100 * dimensions)
    if sampling == "uniform":
        line = jnp.linspace(0.0, highest, count)
        means = jnp.tile(line[:, None], (1, dimensions))
    elif key is None:
        raise ValueError('key must be given where sampling is "random", got None.')
    else:
        means = jax.random.uniform(key, (count, dimensions), maxval=highest)
    return Grid(means, jnp.full(means.shape, deviation, means.dtype))


def check_grid(grid: Grid) -> None:
    """Refuses a grid without components, of unlike shapes or of negative numbers."""
    validation.instance("grid", grid, Grid, "Make one with spectral_grid().")
    fix = "Make them with spectral_grid()."
    means = validation.array(
        "grid.means", grid.means, kind="real", shape=("A", "P"), low=0.0, fix=fix
    )
    validation.array(
        "grid.deviations", grid.deviations, kind="real", shape=means.shape, low=0.0, fix=fix
    )


def warn_of_spacing(inputs: Float[AnyArray, "n P"], highest: float, *, stacklevel: int = 3) -> None:
    """Warns, as `BelowNyquist`, where inputs are typically nearer than 1 / (2 highest).

    Args:
      inputs: of one agent; the typical spacing is the median distance to the nearest other input.
      highest: frequency of the grid.
      stacklevel: of `warnings.warn`; 3 names the caller of the function that calls this.
    """
    from scipy.spatial import cKDTree

    distinct = np.unique(np.asarray(inputs, np.float64), axis=0)
    if len(distinct) < 2 or highest == 0:
        return
    spacing = float(np.median(cKDTree(distinct).query(distinct, k=2)[0][:, 1]))
    needed = 0.5 / highest
    if spacing < needed * (1 - 1e-6):
        warnings.warn(
            f"inputs are typically {spacing:.3g} apart, nearer than {needed:.3g}: the function may hold "
            f"frequencies up to {0.5 / spacing:.3g}, and the grid ends at {highest:.3g}. Scale the "
            f"inputs by {needed / spacing:.3g}, or make the grid with highest={0.5 / spacing:.3g}.",
            BelowNyquist,
            stacklevel=stacklevel,
        )
