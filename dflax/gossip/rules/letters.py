"""What a client writes to each of its neighbours beside its model, brought to those who read it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dflax.clients import select


class Letters(NamedTuple):
    """One letter for each slot of a client's neighbours: written to them, or come from them.

    Attributes:
      content: leaves `[k, ...]`; zeros where no letter came.
      models: `[k]`, >= 0, how many models each is, for `models_sent`; 0 where there is no letter.
    """

    content: PyTree[Array]
    models: Float[Array, " k"]


def addresses(
    neighbours: Int[Array, "n k"], weights: Float[Array, "n k"]
) -> tuple[Int[Array, "n k"], Bool[Array, "n k"]]:
    """In which of the sender's slots the letter lies that comes to each slot, and whether one comes.

    A client writes to those whom it hears. Who does not hear it back cannot read it.

    Args:
      neighbours: who is heard in each slot.
      weights: 0 in empty slots, and where one of the two is absent.
    """
    clients = jnp.arange(len(neighbours), dtype=neighbours.dtype)
    mutual = (neighbours[neighbours] == clients[:, None, None]) & (weights[neighbours] > 0)
    return jnp.argmax(mutual, -1).astype(jnp.int32), mutual.any(-1) & (weights > 0)


def come(letters: Letters, comes: Bool[Array, " k"]) -> Letters:
    """Those letters that are there and come to a client; zeros in the place of all others."""
    there = comes & (letters.models > 0)
    return select(there, letters, jax.tree.map(jnp.zeros_like, letters))
