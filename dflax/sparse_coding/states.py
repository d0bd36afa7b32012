"""Which states of the latents are kept: none, each alone, and patterns of few among the candidates."""

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dflax import validation

# More patterns than these are a mistake: each is scored for each example.
MOST_PATTERNS = 100_000


class Truncation(NamedTuple):
    """How many latents may be active together; make one with `truncation`.

    Attributes:
      latents: H.
      candidates: H', of each example.
      most: gamma, active ones.
      patterns: `[S, H']` int, of 2 to gamma active candidates: at each the number of its value, 1 ..
        V, and 0 for those that are not.
    """

    latents: int
    candidates: int
    most: int
    patterns: Int[np.ndarray, "S C"]


def truncation(latents: int, candidates: int, most: int, values: int = 1) -> Truncation:
    """The kept states: no latent, each alone, and 2 to gamma of the H' best candidates of an example.

    There are S = sum_{g=2..gamma} binom(H', g) V^g patterns.

    Args:
      latents: H >= 1.
      candidates: H' in [1, H].
      most: gamma in [1, H'].
      values: V >= 1, values of a latent other than 0.

    Returns:
      A `Truncation`.

    Raises:
      TypeError, ValueError: naming the argument; more than 100,000 patterns.
    """
    validation.integer("latents", latents, low=1)
    validation.integer("candidates", candidates, low=1, high=latents)
    validation.integer("most", most, low=1, high=candidates)
    validation.integer("values", values, low=1)
    rows = []
    count = sum(math.comb(candidates, g) * values**g for g in range(2, most + 1))
    if count > MOST_PATTERNS:
        raise ValueError(
            f"candidates and most must make at most {MOST_PATTERNS:,} patterns, got {candidates} and "
            f"{most}, which make {count:,.0f}. Lower one of them."
        )
    for active in range(2, most + 1):
        for places in itertools.combinations(range(candidates), active):
            for chosen in itertools.product(range(1, values + 1), repeat=active):
                row = np.zeros(candidates, int)
                row[list(places)] = chosen
                rows.append(row)
    return Truncation(latents, candidates, most, np.array(rows, int).reshape(-1, candidates))


def mass_within(
    truncation: Truncation, active: float | Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """A and B: the prior mass of at most gamma active latents, and their mean number within it.

        A = sum_{g <= gamma} binom(H, g) pi^g (1 - pi)^(H - g),   B = sum_{g <= gamma} g ...

    For H = 2, gamma = 1 and pi = 1/2 they are 3/4 and 1/2.

    Args:
      truncation: H and gamma.
      active: pi, the probability that a latent is not 0, in [0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    fix = "Make one with dflax.sparse_coding.truncation(10, 8, 5)."
    validation.instance("truncation", truncation, Truncation, fix)
    validation.probability("active", active)
    H = truncation.latents
    g = np.arange(truncation.most + 1)
    weights = np.array([float(math.comb(H, int(k))) for k in g])
    pi = jnp.asarray(active)
    terms = jnp.asarray(weights, pi.dtype) * pi**g * (1 - pi) ** (H - g)
    return terms.sum(), (g * terms).sum()
