"""One hop of flooding: everyone hears what its neighbours hold."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dflax.clients import map_clients


def hop(links: Bool[Array, "n n"], held: Int[Array, "n m"]) -> Int[Array, "n m"]:
    """The greatest of what the neighbours hold, entry by entry.

        heard_ik = max over j with links_ij of held_jk

    Nothing of the size n x n x m is made. Under a mesh `links` and the result stay with the robots.

    Args:
      links: `[n, n]`, whom each robot (a row) hears.
      held: `[n, m]` integers; the least of their type stands for nothing.

    Returns:
      `[n, m]`, the least of the type where no neighbour holds anything.
    """
    nothing = jnp.iinfo(held.dtype).min

    def heard(neighbours: Array, held: Array) -> Array:
        def hear(best: Array, other: tuple[Array, Array]) -> tuple[Array, None]:
            is_neighbour, row = other
            return jnp.maximum(best, jnp.where(is_neighbour, row, nothing)), None

        start = jnp.full(held.shape[1], nothing, held.dtype)
        return jax.lax.scan(hear, start, (neighbours, held))[0]

    return map_clients(heard, links, shared=(held,), at_once=links.shape[0])
