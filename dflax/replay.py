"""A ring of what was tried: the newest rows, drawn from again and again, or read in order."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation


class Ring(NamedTuple):
    """The newest C rows of all that were pushed.

    Attributes:
      rows: leaves `[C, ...]`.
      pushed: `[]` int32, how many rows were ever pushed.
    """

    rows: PyTree[Array]
    pushed: Int[Array, ""]

    @property
    def capacity(self) -> int:
        """C."""
        return jax.tree.leaves(self.rows)[0].shape[0]

    @property
    def filled(self) -> Int[Array, ""]:
        """How many rows are there, at most C."""
        return jnp.minimum(self.pushed, self.capacity)


def ring(capacity: int, row: PyTree[Any]) -> Ring:
    """An empty ring.

    Args:
      capacity: C >= 1.
      row: one row, or its shapes.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("capacity", capacity, low=1)
    validation.arrays("row", row, some=True)
    empty = jax.tree.map(
        lambda leaf: jnp.zeros((capacity, *jnp.shape(leaf)), jnp.result_type(leaf)), row
    )
    return Ring(empty, jnp.int32(0))


def pushed(ring: Ring, rows: PyTree[Any]) -> Ring:
    """The ring with N more rows, in place of the oldest.

    Args:
      ring: of capacity C.
      rows: leaves `[N, ...]`, N <= C.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_ring(ring)
    validation.arrays("rows", rows, some=True)
    count = validation.leading_axis("rows", rows)
    if count > ring.capacity:
        raise ValueError(f"rows must be at most the capacity {ring.capacity}, got {count}.")
    wanted: Any = jax.tree.structure(ring.rows)
    if jax.tree.structure(rows) != wanted:
        raise ValueError(f"rows must be like those of the ring, got {validation.shown(rows)}.")
    for new, old in zip(jax.tree.leaves(rows), jax.tree.leaves(ring.rows), strict=True):
        if jnp.shape(new)[1:] != old.shape[1:]:
            raise ValueError(
                f"rows must have the shape [N, ...] of the ring's rows, {old.shape[1:]} each, got "
                f"{jnp.shape(new)}."
            )
    at = (ring.pushed + jnp.arange(count)) % ring.capacity
    after = jax.tree.map(lambda old, new: old.at[at].set(new), ring.rows, rows)
    return Ring(after, ring.pushed + count)


def drawn(ring: Ring, key: Key[Array, ""], count: int) -> PyTree[Array]:
    """Rows drawn with replacement from those that are there, leaves `[count, ...]`.

    Args:
      ring: with at least one row; of an empty one zeros are drawn.
      key: of the draw.
      count: >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_ring(ring)
    validation.typed_key("key", key)
    validation.integer("count", count, low=1)
    at = jax.random.randint(key, (count,), 0, jnp.maximum(ring.filled, 1))
    return jax.tree.map(lambda leaf: leaf[at], ring.rows)


def in_order(ring: Ring) -> PyTree[Array]:
    """All C rows, the newest last; those that are not there yet are zeros, and come first.

    Args:
      ring: of capacity C.

    Raises:
      TypeError: naming the argument.
    """
    check_ring(ring)
    at = (ring.pushed + jnp.arange(ring.capacity)) % ring.capacity
    return jax.tree.map(lambda leaf: leaf[at], ring.rows)


def check_ring(value: Any) -> None:
    """Refuse what is no `Ring`."""
    validation.instance("ring", value, Ring, "Make one with dflax.rl.ring.")
