"""Sets in which an addition wins over a removal that did not see it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dflax import validation
from dflax.p2p.crdt.protocol import Crdt


class OrSet(NamedTuple):
    """A set, by counters.

    Attributes:
      added: `[slots, n]` int32, how often each writer has added an element.
      removed: `[slots, n]` int32, how many of these additions a removal has seen.
    """

    added: Int[Array, "slots n"]
    removed: Int[Array, "slots n"]


def or_set(slots: int, writers: int) -> Crdt:
    """A set of elements 0, ..., slots - 1: join = max of both counters, a member has added > removed.

    `write(replica, writer, slot, present)`. With present, added[slot, writer] += 1; without,
    removed[slot] = added[slot] as the replica knows it. So an addition that a removal did not see
    stays, also one by the writer whose earlier addition is removed. One bit for each slot and writer
    would not do: what was removed once could never be added again by the same writer.

    Args:
      slots: >= 1.
      writers: n >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("slots", slots, low=1)
    validation.integer("writers", writers, low=1)

    def bottom() -> OrSet:
        return OrSet(jnp.zeros((slots, writers), jnp.int32), jnp.zeros((slots, writers), jnp.int32))

    def write(
        replica: OrSet, writer: Int[Array, ""], slot: Int[Array, ""], present: Bool[Array, ""]
    ) -> OrSet:
        present = jnp.asarray(present)
        seen = jnp.maximum(replica.removed[slot], replica.added[slot])
        return OrSet(
            replica.added.at[slot, writer].add(present.astype(jnp.int32)),
            replica.removed.at[slot].set(jnp.where(present, replica.removed[slot], seen)),
        )

    def join(a: OrSet, b: OrSet) -> OrSet:
        return OrSet(jnp.maximum(a.added, b.added), jnp.maximum(a.removed, b.removed))

    def value(replica: OrSet) -> Bool[Array, " slots"]:
        return jnp.any(replica.added > replica.removed, axis=1)

    return Crdt(bottom, join, write, value)
