"""One hop of flooding: everyone hears what its neighbours hold."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dflax.gossip.products.by_coordinates import by_coordinates


def hop(links: Bool[Array, "n n"], held: Int[Array, "n m"]) -> Int[Array, "n m"]:
    """The greatest of what the neighbours hold, entry by entry.

        heard_ik = max over j with links_ij of held_jk

    Nothing of the size n x n x m is made. Under a mesh a device floods its share of the m columns: what
    is held is dealt by columns, and what is heard by robots again.

    Args:
      links: `[n, n]`, whom each robot (a row) hears; every device wants to know it whole.
      held: `[n, m]` integers; the least of their type stands for nothing.

    Returns:
      `[n, m]`, the least of the type where no neighbour holds anything.
    """
    nothing = jnp.iinfo(held.dtype).min

    def heard(held: Array, links: Array) -> Array:
        def hear(best: Array, other: tuple[Array, Array]) -> tuple[Array, None]:
            hears, row = other
            return jnp.maximum(best, jnp.where(hears[:, None], row, nothing)), None

        start = jnp.full(held.shape, nothing, held.dtype)
        return jax.lax.scan(hear, start, (links.T, held))[0]

    return by_coordinates(heard, held, links)
