"""What one replica must send another: entries by version vector, entries by hash, and digests."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from dflax import validation
from dflax.p2p.crdt.protocol import Crdt, Replica
from dflax.p2p.hashes import root, row_hashes


class Stamped(NamedTuple):
    """A replica that knows which writes its entries have seen.

    Attributes:
      replica: of the stamped type.
      seen: `[E, n]` int32, the latest write of each writer that went into an entry.
    """

    replica: Replica
    seen: Int[Array, "E n"]


def stamped(crdt: Crdt, writers: int) -> Crdt:
    """The same data type with stamps, so that `newer` can tell what a version vector lacks.

    Writer w's write number s stamps every entry that it changes: seen[e, w] = s. Join = join of the
    replicas, max of the stamps. The largest stamps are the version vector.

    Args:
      crdt: any.
      writers: n >= 1.

    Returns:
      A `Crdt` of `Stamped` replicas.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _crdt(crdt)
    validation.integer("writers", writers, low=1)

    def bottom() -> Stamped:
        nothing = crdt.bottom()
        return Stamped(nothing, jnp.zeros((entries_of(nothing), writers), jnp.int32))

    def write(stamp: Stamped, writer: Int[Array, ""], *what: Any) -> Stamped:
        after = crdt.write(stamp.replica, writer, *what)
        changed = _differ(after, stamp.replica)
        number = 1 + jnp.max(stamp.seen[:, writer])
        column = jnp.where(changed, number, stamp.seen[:, writer])
        return Stamped(after, stamp.seen.at[:, writer].set(column))

    def join(a: Stamped, b: Stamped) -> Stamped:
        return Stamped(crdt.join(a.replica, b.replica), jnp.maximum(a.seen, b.seen))

    return Crdt(bottom, join, write, lambda stamp: crdt.value(stamp.replica))


def version_of(stamp: Stamped) -> Int[Array, " n"]:
    """`[n]` the version vector of a stamped replica: how many writes of each writer it has seen.

    Args:
      stamp: of a type that `stamped` made.

    Raises:
      TypeError: another replica.
    """
    validation.instance(
        "stamp", stamp, Stamped, "dflax.p2p.stamped makes the type of such replicas."
    )
    return jnp.max(stamp.seen, axis=0)


def newer(stamp: Stamped, version: Int[Array, " n"]) -> Bool[Array, " E"]:
    """`[E]` the entries that a replica of that version lacks, or has not all writes of.

    Sent whole (`only`), they make the other know everything. A part of them alone must not be joined:
    its version would then speak for writes that it lacks.

    Args:
      stamp: of a type that `stamped` made.
      version: `[n]` of the other, `version_of(other)`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance(
        "stamp", stamp, Stamped, "dflax.p2p.stamped makes the type of such replicas."
    )
    writers = stamp.seen.shape[-1]
    known = jnp.asarray(
        validation.array("version", version, kind="integer", shape=(writers,), low=0)
    )
    return jnp.any(stamp.seen > known, axis=1)


def only(crdt: Crdt, replica: Replica, entries: Bool[Array, " E"]) -> Replica:
    """A replica that knows of some entries alone: what is sent as a delta.

    Args:
      crdt: the data type.
      replica: one of it.
      entries: `[E]` which.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _crdt(crdt)
    nothing = crdt.bottom()
    validation.arrays("replica", replica, some=True)
    # Structures of trees compare, which their stubs do not say.
    given: Any = jax.tree.structure(replica)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(replica)]
    if given != jax.tree.structure(nothing) or shapes != [
        leaf.shape for leaf in jax.tree.leaves(nothing)
    ]:
        raise TypeError(
            f"replica must be one of the data type, {validation.shown(nothing)}, got "
            f"{validation.shown(replica)}."
        )
    count = entries_of(nothing)
    chosen = jnp.asarray(validation.array("entries", entries, kind="boolean", shape=(count,)))

    def kept(some: Array, none: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *[1] * (none.ndim - 1)), some, none)

    return jax.tree.map(kept, replica, nothing)


def entry_digests(replica: Replica) -> UInt32[Array, " E"]:
    """`[E]` a hash of every entry over (slot, value, time, writer) or whatever it has.

    Args:
      replica: leaves `[E, ...]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.arrays("replica", replica, some=True)
    validation.leading_axis("replica", replica, least=1)
    return row_hashes(replica)


def digest(replica: Replica) -> UInt32[Array, ""]:
    """The Merkle root over the digests of all entries; of equal ones the exchange can be skipped.

    Args:
      replica: leaves `[E, ...]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    return root(entry_digests(replica))


def entries_of(replica: Replica) -> int:
    """E, of one replica."""
    return jax.tree.leaves(replica)[0].shape[0]


def content(replica: Replica) -> Replica:
    """A replica without its stamps."""
    return replica.replica if isinstance(replica, Stamped) else replica


def _differ(a: Replica, b: Replica) -> Bool[Array, " E"]:
    changed = [
        jnp.any((x != y).reshape(x.shape[0], -1), axis=1)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return jnp.any(jnp.stack(changed), axis=0)


def _crdt(crdt: Crdt) -> None:
    validation.instance("crdt", crdt, Crdt, "For example dflax.p2p.or_set(slots, writers).")
