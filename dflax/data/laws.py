"""Dirichlet laws: shares of classes or clients from even to one-sided."""

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from dflax import validation

REDRAWS = 10_000


def dirichlet_laws(
    seed: int | Key[Array, ""], clients: int, classes: int, alpha: float, min_mass: float = 0.0
) -> Float[np.ndarray, "n C"]:
    """Class laws q_i ~ Dirichlet(alpha 1_C) of n clients, for `dflax.data.resample`.

    All laws are redrawn until every class has mean mass (1/n) sum_i q_ic >= min_mass, so that no
    class is nearly absent from the federation.

    Args:
      seed: an integer >= 0 or a typed JAX key.
      clients: n >= 1.
      classes: C >= 1.
      alpha: > 0, finite.
      min_mass: in [0, 1/C).

    Returns:
      `[n, C]` float64, rows that sum to 1.

    Raises:
      ValueError, TypeError: an argument out of range, or a floor not met in 10,000 draws.

    References:
      Zhu et al., A Single Merging Suffices, arXiv 2507.06542.
    """
    validation.integer("clients", clients, low=1)
    validation.integer("classes", classes, low=1)
    validation.real("alpha", alpha, low=0.0, low_open=True, scalar=True)
    # One class has all the mass: its floor may be anything below.
    validation.real("min_mass", min_mass, low=0.0, high=1 / classes, high_open=True, scalar=True)
    if not isinstance(seed, (int, np.integer)):
        validation.typed_key("seed", seed)
        seed = np.asarray(jax.random.key_data(seed)).tolist()
    else:
        validation.seed("seed", seed)
    generator = np.random.default_rng(seed)
    best = 0.0
    for _ in range(REDRAWS):
        laws = dirichlet_rows(generator, alpha, (clients, classes))
        best = max(best, float(laws.mean(0).min()))
        if best >= min_mass:
            return laws
    raise ValueError(
        f"min_mass must be reachable, got {min_mass}; the best of {REDRAWS} draws with "
        f"clients={clients}, alpha={alpha} has {best:.3g}. Lower it, or raise clients or alpha."
    )


def dirichlet_rows(
    generator: np.random.Generator, alpha: float, shape: tuple[int, int]
) -> Float[np.ndarray, "rows n"]:
    """Rows ~ Dirichlet(alpha 1_n) for every alpha > 0, in logarithms so that none underflows."""
    # Gamma(a) has the law of Gamma(a + 1) U^(1/a), whose logarithm stays finite for tiny a.
    logs = np.log(generator.standard_gamma(alpha + 1.0, shape))
    logs -= generator.standard_exponential(shape) / alpha
    weights = np.exp(logs - logs.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
