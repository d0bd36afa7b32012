"""What a node knows of others' models, at first hand or passed on, in a memory of fixed size."""

import functools
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


class Incoming(NamedTuple):
    """Records that come to a node.

    Attributes:
      records: k of them.
      arrives: `[k]`, which of them are there.
      first_hand: whether the nodes sent them themselves; static.
    """

    records: Records
    arrives: Bool[Array, " k"]
    first_hand: bool


def stored(records: Records, *batches: Incoming) -> Records:
    """The records after others have come, one after another.

    At first hand everything is stored. What is passed on is stored of who is not known, or if it is
    newer than what was passed on before. A record at first hand is never replaced by one passed on.
    Where no place is free, the oldest record that was passed on gives way, of equally old ones the
    farthest, and, to a record at first hand only, the oldest at first hand.

    Args:
      records: before.
      *batches: what comes, in this order.
    """
    about, count = records.about, 0
    taken = jnp.full(len(records.known), -1, jnp.int32)
    for batch in batches:
        numbers = count + jnp.arange(len(batch.arrives), dtype=jnp.int32)
        entries = (batch.records.about, batch.arrives, numbers)
        store = functools.partial(_store, first_hand=batch.first_hand)
        (about, taken), _ = jax.lax.scan(store, (about, taken), entries)
        count += len(batch.arrives)

    def written(old: Array, *new: Array) -> Array:
        # Histories are read and written once, whatever was decided on the way.
        return jnp.where(against(taken >= 0, old), jnp.concatenate(new)[taken], old)

    histories = [batch.records.histories for batch in batches]
    return Records(about, jax.tree.map(written, records.histories, *histories))


def _store(
    held: tuple[About, Int[Array, " m"]], entry: tuple[About, Array, Array], first_hand: bool
) -> tuple[tuple[About, Int[Array, " m"]], None]:
    """One record more: what is said of the places, and which of all that come lies in each."""
    (about, taken), (new, there, number) = held, entry
    places, known = place_of(about, new.who[None])
    place = jnp.where(known[0], places[0], _gives_way(about))
    old = jax.tree.map(lambda leaf: leaf[place], about)
    if not first_hand:
        fresher = (new.time > old.time) & (old.distance > 1)
        room = (old.time < 0) | (old.distance > 1)
        there = there & jnp.where(known[0], fresher, room)
    about = jax.tree.map(
        lambda leaf, value: leaf.at[place].set(jnp.where(there, value, leaf[place])), about, new
    )
    return (about, taken.at[place].set(jnp.where(there, number, taken[place]))), None


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
