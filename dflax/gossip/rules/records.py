"""What a node knows of others' models, at first hand or passed on, in a memory of fixed size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax.clients import against

NOBODY = -1


class About(NamedTuple):
    """Of whom, how old and how far: what is said of records beside their histories.

    Attributes:
      who: `[m]` int32, a node's number; -1 where nothing is known.
      time: `[m]` int32, the round in which somebody received it from that node itself; -1 for none.
      distance: `[m]` int32, how many edges it came along: 1 of a record at first hand.
      source: `[m]` int32, who passed it on; -1 of a record at first hand.
    """

    who: Int[Array, " m"]
    time: Int[Array, " m"]
    distance: Int[Array, " m"]
    source: Int[Array, " m"]


class Records(NamedTuple):
    """The records of one node.

    Attributes:
      about: of the m places.
      histories: leaves `[m, ...]`.
    """

    about: About
    histories: PyTree[Array]

    @property
    def known(self) -> Bool[Array, " m"]:
        """Which places hold a record."""
        return self.about.time >= 0


def none_known(model: PyTree[Array], places: int) -> Records:
    """Records of nobody, with so many places for histories like the model."""
    nobody = jnp.full(places, NOBODY, jnp.int32)
    empty = About(nobody, nobody, jnp.zeros(places, jnp.int32), nobody)
    histories = jax.tree.map(lambda leaf: jnp.zeros((places, *leaf.shape), leaf.dtype), model)
    return Records(empty, histories)


def place_of(about: About, who: Int[Array, " k"]) -> tuple[Int[Array, " k"], Bool[Array, " k"]]:
    """Where each node's record lies, and whether there is one."""
    same = (about.who == who[:, None]) & (about.time >= 0)
    return jnp.argmax(same, -1), same.any(-1)


def stored(
    records: Records, incoming: Records, arrives: Bool[Array, " k"], first_hand: bool
) -> Records:
    """The records after k more have come, in the order of their numbers.

    At first hand everything is stored. What is passed on is stored of who is not known, or if it is
    newer than what was passed on before. A record at first hand is never replaced by one passed on.
    Where no place is free, the oldest record that was passed on gives way, of equally old ones the
    farthest, and, to a record at first hand only, the oldest at first hand.

    Args:
      records: before.
      incoming: `[k]` of them.
      arrives: which of them are there.
      first_hand: whether the nodes sent them themselves.
    """
    count = len(arrives)

    def one(
        held: tuple[About, Int[Array, " m"]], entry: tuple[About, Array, Array]
    ) -> tuple[tuple[About, Int[Array, " m"]], None]:
        (about, taken), (new, there, number) = held, entry
        place, known = place_of(about, new.who[None])
        place = jnp.where(known[0], place[0], _gives_way(about))
        old = jax.tree.map(lambda leaf: leaf[place], about)
        if not first_hand:
            fresher = (new.time > old.time) & (old.distance > 1)
            room = (old.time < 0) | (old.distance > 1)
            there = there & jnp.where(known[0], fresher, room)
        about = jax.tree.map(
            lambda leaf, value: leaf.at[place].set(jnp.where(there, value, leaf[place])), about, new
        )
        return (about, taken.at[place].set(jnp.where(there, number, taken[place]))), None

    untouched = jnp.full(len(records.known), -1, jnp.int32)
    entries = (incoming.about, arrives, jnp.arange(count, dtype=jnp.int32))
    (about, taken), _ = jax.lax.scan(one, (records.about, untouched), entries)
    histories = jax.tree.map(
        lambda old, new: jnp.where(against(taken >= 0, old), new[taken], old),
        records.histories,
        incoming.histories,
    )
    return Records(about, histories)


def _gives_way(about: About) -> Int[Array, ""]:
    """The place that is free, or freed first."""
    free, direct = about.time < 0, about.distance == 1
    order = jnp.lexsort((-about.distance, about.time, direct & ~free))
    return order[0]


def drawn(
    records: Records,
    reader: Int[Array, ""],
    decay: float | Float[Array, ""],
    key: Key[Array, ""],
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """The place of one record to pass on to a reader, and whether there is any.

        P(k) ~ exp(-lambda (distance_k - 1))       over the k known that are neither about the reader
                                                   nor came from it

    Args:
      records: of the one who passes on.
      reader: its number.
      decay: lambda > 0.
      key: of this draw.
    """
    about = records.about
    candidates = records.known & (about.who != reader) & (about.source != reader)
    logits = jnp.where(candidates, -jnp.asarray(decay) * (about.distance - 1), -jnp.inf)
    # Where there are none, any place is drawn and nothing is sent.
    logits = jnp.where(candidates.any(), logits, 0)
    return jax.random.categorical(key, logits), candidates.any()
