"""Counters that many write, and version vectors."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from dflax import validation
from dflax.p2p.crdt.protocol import Crdt


def g_counter(writers: int) -> Crdt:
    """A counter that grows: counts p `[n]`, join = max of each, value = their sum.

    `write(replica, writer, amount=1)` adds an amount >= 0; a negative one adds nothing.

    Args:
      writers: n >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("writers", writers, low=1)

    def write(
        counts: Int[Array, " n"], writer: Int[Array, ""], amount: int | Int[Array, ""] = 1
    ) -> Int[Array, " n"]:
        return counts.at[writer].add(jnp.maximum(jnp.asarray(amount, jnp.int32), 0))

    return Crdt(lambda: jnp.zeros((writers,), jnp.int32), jnp.maximum, write, jnp.sum)


class PnCounter(NamedTuple):
    """A counter that goes both ways.

    Attributes:
      up: `[n]` int32, what each writer has added.
      down: `[n]` int32, what each has taken away.
    """

    up: Int[Array, " n"]
    down: Int[Array, " n"]


def pn_counter(writers: int) -> Crdt:
    """A counter of two growing ones: value = sum of what was added - sum of what was taken away.

    `write(replica, writer, amount=1)` adds an amount of either sign.

    Args:
      writers: n >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("writers", writers, low=1)

    def write(
        counter: PnCounter, writer: Int[Array, ""], amount: int | Int[Array, ""] = 1
    ) -> PnCounter:
        amount = jnp.asarray(amount, jnp.int32)
        return PnCounter(
            counter.up.at[writer].add(jnp.maximum(amount, 0)),
            counter.down.at[writer].add(jnp.maximum(-amount, 0)),
        )

    def join(a: PnCounter, b: PnCounter) -> PnCounter:
        return PnCounter(jnp.maximum(a.up, b.up), jnp.maximum(a.down, b.down))

    def bottom() -> PnCounter:
        return PnCounter(jnp.zeros((writers,), jnp.int32), jnp.zeros((writers,), jnp.int32))

    return Crdt(bottom, join, write, lambda counter: jnp.sum(counter.up) - jnp.sum(counter.down))


def version_vector(writers: int) -> Crdt:
    """Events that each writer has had, `[n]`: join = max of each, `write(vector, writer)` adds one.

    Args:
      writers: n >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    count = g_counter(writers)
    return count._replace(write=lambda vector, writer: count.write(vector, writer, 1), value=_same)


def _same(vector: Int[Array, " n"]) -> Int[Array, " n"]:
    return vector


EQUAL, BEFORE, AFTER, CONCURRENT = 0, 1, 2, 3


def causality(a: Int[Array, "... n"], b: Int[Array, "... n"]) -> Int[Array, "..."]:
    """How two version vectors stand to each other.

    Args:
      a: `[..., n]` integers.
      b: `[..., n]` integers.

    Returns:
      `[...]` int32: 0 they are equal, 1 a was before b, 2 after it, 3 neither knows all of the other.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    a = jnp.asarray(validation.array("a", a, kind="integer", fix="[..., n] integers."))
    b = jnp.asarray(validation.array("b", b, kind="integer", fix="[..., n] integers."))
    if a.ndim < 1 or b.ndim < 1 or a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"a and b must be version vectors of the same writers, got shapes {a.shape}, {b.shape}."
        )
    ahead, behind = jnp.any(a > b, axis=-1), jnp.any(a < b, axis=-1)
    return (2 * ahead + behind).astype(jnp.int32)
