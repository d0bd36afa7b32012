"""Maps in which the last write wins, and an index that is read, modified and written back."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dflax import validation
from dflax.p2p.crdt.protocol import Crdt
from dflax.p2p.order import larger


class LwwMap(NamedTuple):
    """A map from slots to integers.

    Attributes:
      value: `[slots]` int32.
      time: `[slots]` int32, of the write that won; 0 where nobody wrote.
      writer: `[slots]` int32, whose it was; -1 where nobody wrote.
      lifted: `[slots]` int32, 1 where its clock was behind and the time was lifted.
    """

    value: Int[Array, " slots"]
    time: Int[Array, " slots"]
    writer: Int[Array, " slots"]
    lifted: Int[Array, " slots"]


def lww_map(slots: int) -> Crdt:
    """A map whose join takes, slot by slot, what is larger by (time, writer, value).

    `write(replica, writer, slot, value, clock)`. The write's time is max(clock, 1 + the latest time in
    the replica): so one writer never uses a time twice, also when its clock runs backwards, and
    whatever it saw before is overwritten. Where the clock was behind, `lifted` says so. `value` gives
    the values.

    Args:
      slots: >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("slots", slots, low=1)

    def bottom() -> LwwMap:
        nothing = jnp.zeros((slots,), jnp.int32)
        return LwwMap(nothing, nothing, nothing - 1, nothing)

    def write(
        replica: LwwMap,
        writer: Int[Array, ""],
        slot: Int[Array, ""],
        value: Int[Array, ""],
        clock: Int[Array, ""],
    ) -> LwwMap:
        latest = jnp.max(replica.time)
        clock = jnp.asarray(clock, jnp.int32)
        return LwwMap(
            replica.value.at[slot].set(value),
            replica.time.at[slot].set(jnp.maximum(clock, latest + 1)),
            replica.writer.at[slot].set(writer),
            replica.lifted.at[slot].set((clock <= latest).astype(jnp.int32)),
        )

    def join(a: LwwMap, b: LwwMap) -> LwwMap:
        theirs = larger(
            (b.time, b.writer, b.value, b.lifted), (a.time, a.writer, a.value, a.lifted)
        )
        return LwwMap(*(jnp.where(theirs, y, x) for x, y in zip(a, b, strict=True)))

    return Crdt(bottom, join, write, lambda replica: replica.value)


class SubkeyIndex(NamedTuple):
    """The list of a record's subkeys, as one value.

    Attributes:
      members: `[1, slots]` bools.
      time: `[1]` int32, when it was last written.
      writer: `[1]` int32, by whom.
    """

    members: Bool[Array, "1 slots"]
    time: Int[Array, " 1"]
    writer: Int[Array, " 1"]


def subkey_index(slots: int) -> Crdt:
    """Lattica's published store: a list that is read, changed and written back, whole; the last stays.

    `write(replica, writer, slot, present, clock)`. Replicas agree, but of two writers who change
    different slots at once one is lost. It stands here beside `or_set`, which loses none.

    Args:
      slots: >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("slots", slots, low=1)

    def bottom() -> SubkeyIndex:
        return SubkeyIndex(
            jnp.zeros((1, slots), bool), jnp.zeros((1,), jnp.int32), jnp.full((1,), -1, jnp.int32)
        )

    def write(
        replica: SubkeyIndex,
        writer: Int[Array, ""],
        slot: Int[Array, ""],
        present: Bool[Array, ""],
        clock: Int[Array, ""],
    ) -> SubkeyIndex:
        return SubkeyIndex(
            replica.members.at[0, slot].set(present),
            jnp.maximum(jnp.asarray(clock, jnp.int32), replica.time + 1),
            jnp.full((1,), writer, jnp.int32),
        )

    def join(a: SubkeyIndex, b: SubkeyIndex) -> SubkeyIndex:
        theirs = larger((b.time, b.writer), (a.time, a.writer))
        return SubkeyIndex(
            jnp.where(theirs[:, None], b.members, a.members),
            jnp.where(theirs, b.time, a.time),
            jnp.where(theirs, b.writer, a.writer),
        )

    return Crdt(bottom, join, write, lambda replica: replica.members[0])
