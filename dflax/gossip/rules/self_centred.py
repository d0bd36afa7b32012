"""Self-centred clipping: nobody pulls a client farther than a length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics
from dflax.gossip.rules.aggregating import combining
from dflax.gossip.rules.neighbour_rule import NeighbourRule


def self_centred_clipping(radius: float | Float[Array, ""], steps: int = 1) -> NeighbourRule:
    """Self-centred clipping (SCC, ClippedGossip): each neighbour's pull is cut to a length.

        v <- v + sum_j w_ij (x_j - v) min(1, tau / |x_j - v|)        L times from v = x_i, tau = radius

    The sum is over the own model and those heard. In the first pass the own one pulls nowhere, and
    arbitrary neighbours of weight a move a client by a tau at most.

    Args:
      radius: tau > 0, in the units of a model's norm; traceable.
      steps: L >= 1, static.

    Returns:
      A `NeighbourRule`, see `combining`. With the radius 1 a client that holds 0 makes 0.625 of it and
      the models 0.5, 2 and 10 of weight 1/4 each: (0.5 + 1 + 1) / 4.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      He, Karimireddy and Jaggi, Byzantine-Robust Decentralized Learning via ClippedGossip,
      arXiv 2202.01545; with several passes as in Farhadkhani et al., arXiv 2209.10931.
    """
    validation.real("radius", radius, low=0.0, low_open=True, scalar=True)
    validation.integer("steps", steps, low=1)

    def shares(
        products: Float[Array, "r r"], weights: Float[Array, " r"], key: Key[Array, ""]
    ) -> tuple[Float[Array, " r"], Metrics]:
        norms = jnp.diagonal(products)
        exact = jax.lax.Precision.HIGHEST

        def step(number: Array, mix: Float[Array, " r"]) -> Float[Array, " r"]:
            to = jnp.matmul(products, mix, precision=exact)
            squared = norms - 2 * to + jnp.matmul(mix, to, precision=exact)
            length = jnp.sqrt(jnp.maximum(squared, 0))
            cut = jnp.where(length > radius, radius / jnp.where(length > radius, length, 1), 1)
            pull = (weights * cut).astype(mix.dtype)
            return mix * (1 - pull.sum()) + pull

        itself = (jnp.arange(len(norms)) == 0).astype(products.dtype)
        return jax.lax.fori_loop(0, steps, step, itself), {}

    return combining(shares)
