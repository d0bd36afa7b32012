"""Gossip of what has a join instead of a mean: counters, masks, timestamps, versions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dflax import returned, validation
from dflax.algorithm import Metrics
from dflax.clients import select
from dflax.gossip.mixer import Known
from dflax.gossip.rules.neighbour_rule import Neighbourhood, NeighbourRule, nothing_to_remember

Merge = Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]]


class Stamped(NamedTuple):
    """A value with the stamp of its last change.

    Attributes:
      stamp: `[...]` integers or real numbers; the larger one is newer. A stamp belongs to one value:
        with several writers make it so, `time * n + writer`.
      value: leaves that begin with the axes of the stamp: one stamp may stand for a whole tree, or each
        of c stamps for one row of it.
    """

    stamp: Int[Array, "..."] | Float[Array, "..."]
    value: PyTree[Array]


def join(merge: Merge) -> NeighbourRule:
    """Every client joins what it holds with what its neighbours hold.

        x_i <- x_i v x_1 v ... v x_k             v = merge, over the neighbours that are there

    A join is commutative, associative and idempotent: (N, max), (sets, union), (versions, newest). So
    it does not matter how often or in which order something is heard, and after as many mixings as the
    graph is wide everyone holds the join of all. The state-based replicated data types (CRDTs) are
    such. Weights do not count beyond who is heard.

    Args:
      merge: `(one, other) -> joined` on trees of one form, leaves of any dtype, for example `greatest`,
        `least`, `union`, `newest`.

    Returns:
      A `NeighbourRule`: `by_rule(topology.ring(n), join(greatest))`.

    Raises:
      TypeError: no function of two arguments; from the mixing, naming what `merge` returned that does
        not fit.

    References:
      Shapiro et al., Conflict-free Replicated Data Types, SSS 2011, INRIA RR-7687.
    """
    fix = "For example dflax.gossip.greatest."
    validation.function("merge", merge, fix, takes=2)

    def apply(
        own: Any, others: Any, weights: Array, memory: tuple[()], here: Neighbourhood
    ) -> tuple[Any, tuple[()], Metrics]:
        def hear(held: Any, other: Any) -> tuple[Any, None]:
            joined = merge(held, other)
            returned.alike("what merge(one, other) returns", joined, held, "one of them")
            return joined, None

        # Who is absent is replaced by the client itself, and joining that changes nothing.
        joined, _ = jax.lax.scan(hear, own, others)
        return joined, memory, {}

    known = Known(False, False, linear=False, averages_statistics=False)
    return NeighbourRule(nothing_to_remember, apply, known, real=False)


def greatest(one: PyTree[Array], other: PyTree[Array]) -> PyTree[Array]:
    """The larger number of every two."""
    return jax.tree.map(jnp.maximum, one, other)


def least(one: PyTree[Array], other: PyTree[Array]) -> PyTree[Array]:
    """The smaller number of every two."""
    return jax.tree.map(jnp.minimum, one, other)


def union(one: PyTree[Array], other: PyTree[Array]) -> PyTree[Array]:
    """Of booleans what either has; of integers, as sets of bits, the bits that either has."""
    return jax.tree.map(jnp.bitwise_or, one, other)


def newest(one: Stamped, other: Stamped) -> Stamped:
    """The value of the larger stamp, stamp by stamp (last writer wins); of equal ones the first."""
    fix = "Give every value its stamp: gossip.Stamped(stamp, value)."
    validation.instance("one", one, Stamped, fix)
    validation.instance("other", other, Stamped, fix)
    return select(other.stamp > one.stamp, other, one)
