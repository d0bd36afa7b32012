"""Nearest-neighbour averaging: every client takes the mean of those nearest to itself."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.aggregation.rows.distances import distances_of
from dflax.aggregation.tolerance import require_faulty
from dflax.algorithm import Metrics
from dflax.gossip.rules.aggregating import combining
from dflax.gossip.rules.neighbour_rule import NeighbourRule
from dflax.kernels.ranks import ranks


def nna(faulty: int | Int[Array, ""]) -> NeighbourRule:
    """Nearest-neighbour averaging (NNA), the mixing of MoNNA.

        x_i <- mean of the m - f models nearest to x_i, itself among them      m models heard, f = faulty

    The own model counts as heard, and whatever the weights are, all that are kept count the same. Up to
    f of the models heard may be arbitrary. One that is farther away than the m - f nearest has no effect
    at all, and clients that agree stay where they are. In MoNNA a client waits for m = n - f models of n
    clients (`topology.random_neighbours(n, n - f - 1, first=hostile)`) and so keeps n - 2 f; on a graph
    that waits for everyone m is a client's degree and one, and it keeps m - f.

    Args:
      faulty: f >= 0, traceable. Every client must hear m >= 2 f + 1 models, its own among them: of
        fewer most of those kept might be arbitrary. Of m = n - f that means n > 3 f. Where absence
        leaves fewer, m - f of them are kept, the own one at least.

    Returns:
      A `NeighbourRule`, see `combining`. With f = 1 a client that holds 0 makes 0.5 of it and the models
      2, 1, -1, 10.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Farhadkhani et al., Robust Collaborative Learning with Linear Gradient Overhead, ICML 2023,
      arXiv 2209.10931.
    """
    require_faulty(faulty)

    def shares(
        products: Float[Array, "r r"], weights: Float[Array, " r"], key: Key[Array, ""]
    ) -> tuple[Float[Array, " r"], Metrics]:
        heard = (weights > 0).at[0].set(True)
        distances = jnp.where(heard, distances_of(products)[0], jnp.inf)
        # Itself first, even where others are just as near.
        rank = ranks(distances.at[0].set(-1))
        kept = jnp.maximum(jnp.sum(heard) - faulty, 1)
        return ((rank < kept) & heard).astype(products.dtype), {}

    return combining(shares, least=1 if validation.is_traced(faulty) else 2 * int(faulty) + 1)
