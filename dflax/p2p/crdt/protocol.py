"""What a replicated data type is: four pure functions, of which the join is a semilattice's."""

from collections.abc import Callable
from typing import Any, NamedTuple

# A pytree of arrays, of which each type has its own.
Replica = Any


class Crdt(NamedTuple):
    """A state-based replicated data type.

    Replicas that have heard of the same writes are equal, whatever the order, the repetitions and the
    ways by which they heard of them, since the join is commutative, associative and idempotent, and
    writes only ever go up in its order.

    Attributes:
      bottom: `bottom() -> replica` that knows of nothing; all its leaves lead with the entries' axis E.
      join: `join(replica, other) -> replica`: the least that knows what both know.
      write: `write(replica, writer, ...) -> replica`: a write by `writer` on its own replica.
      value: `value(replica)`: what a reader sees.
    """

    bottom: Callable[[], Replica]
    join: Callable[[Replica, Replica], Replica]
    write: Callable[..., Replica]
    value: Callable[[Replica], Any]
