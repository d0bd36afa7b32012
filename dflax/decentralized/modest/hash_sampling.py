"""Samples that every node derives on its own: orders by a hash, and the first that answer a ping."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from dflax import counter, validation


class Probe(NamedTuple):
    """What pinging the candidates of an order gave.

    Attributes:
      chosen: `[s]` int32 node ids in the order; n where too few answered.
      answered: `[s]`, whether the place is taken.
      failed: `[]` int32, pings without an answer: candidates off line before the s-th live one.
      waves: `[]` int32, how often a time-out had to be waited for.
    """

    chosen: Int[Array, " s"]
    answered: Bool[Array, " s"]
    failed: Int[Array, ""]
    waves: Int[Array, ""]


def md5_ranks(nodes: int | Sequence[bytes], rounds: int, *, first: int = 0) -> Int[Array, "T n"]:
    """Each node's place in the order of rounds first, first + 1, ...: sorted by md5 of "<id>-<round>".

    Args:
      nodes: n, for the ids b"0", ..., or the ids.
      rounds: T >= 1.
      first: number of the first round, >= 0.

    Returns:
      `[T, n]` int32, a permutation in each row.
    """
    if isinstance(nodes, Sequence):
        for place, name in enumerate(nodes):
            validation.instance(f"nodes[{place}]", name, bytes, "An id is a bytes object: b'0'.")
        names = list(nodes)
    else:
        validation.integer("nodes", nodes, low=1, fix="Or pass a list of ids.")
        names = [b"%d" % node for node in range(nodes)]
    if not names:
        raise ValueError("nodes must hold at least one id, got none.")
    validation.integer("rounds", rounds, low=1)
    validation.integer("first", first, low=0)
    ranks = np.empty((rounds, len(names)), np.int32)
    for row in range(rounds):
        keys = [hashlib.md5(b"%s-%d" % (name, first + row)).digest() for name in names]
        ranks[row, sorted(range(len(names)), key=keys.__getitem__)] = np.arange(len(names))
    return jnp.asarray(ranks)


def hashed_keys(seed: UInt32[Array, "2"], round: Int[Array, ""], nodes: int) -> UInt32[Array, " n"]:
    """What nodes are sorted by in a round: a mix of seed, round and id, the same wherever it is made."""
    own = counter.stream(seed, jnp.arange(nodes, dtype=jnp.uint32))
    return counter.mix(own + counter.mix(jnp.asarray(round).astype(jnp.uint32)))


def probe(
    keys: Array, candidates: Bool[Array, " n"], online: Bool[Array, " n"], wanted: int
) -> Probe:
    """Pings candidates in the order of their keys until `wanted` have answered.

    The first s are pinged at once. Who lets its ping time out is replaced by the next in the order. So
    the number of answered and outstanding pings is always s, and those that are tried are the shortest
    prefix of the order with s live nodes. With n candidates, N_off of them off line, that is
    s N_off / (n - N_off + 1) failed pings on average.

    Args:
      keys: `[n]`, smaller is earlier; ranks or hashes, distinct.
      candidates: `[n]`, who is in the view.
      online: `[n]`, who answers.
      wanted: s >= 1, static.

    Returns:
      A `Probe`.
    """
    return probe_in_order(jnp.argsort(keys), candidates, online, wanted)


def probe_in_order(
    order: Int[Array, " n"], candidates: Bool[Array, " n"], online: Bool[Array, " n"], wanted: int
) -> Probe:
    """`probe` where the order, `[n]` ids, is at hand: sorting costs more than the rest."""
    nodes = order.shape[0]
    pinged, live = candidates[order], (candidates & online)[order]
    # Running counts; candidates keep their order, so a node's ping is number `asked`.
    asked, count = jnp.cumsum(pinged), jnp.cumsum(live)
    place = jnp.where(live & (count <= wanted), count - 1, wanted)
    chosen = jnp.full(wanted, nodes, jnp.int32).at[place].set(order.astype(jnp.int32), mode="drop")
    dead = pinged & ~live
    # Up to the s-th live one, or to the end of the list.
    failed = jnp.sum(dead & (count < wanted)).astype(jnp.int32)

    def misses(carry: tuple[Array, Array, Array]) -> Array:
        return carry[1] > 0

    def wave(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        end, missing, waves = carry
        ahead = end + missing
        return ahead, jnp.sum(dead & (asked > end) & (asked <= ahead)), waves + 1

    first = jnp.int32(wanted)
    start = (first, jnp.sum(dead & (asked <= first)).astype(jnp.int32), jnp.int32(0))
    _, _, waves = jax.lax.while_loop(misses, wave, start)
    return Probe(chosen, chosen < nodes, failed, waves)


def first_arrivals(
    finish: Float[Array, " s"], arrived: Bool[Array, " s"], needed: Array
) -> Bool[Array, " s"]:
    """Which messages are among the first `needed` to arrive; all that arrived when they are fewer."""
    when = jnp.where(arrived, finish, jnp.inf)
    rank = jnp.argsort(jnp.argsort(when))
    return arrived & (rank < needed)
