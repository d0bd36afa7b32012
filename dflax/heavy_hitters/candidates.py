"""Sets of prefixes: sorted, padded to a static length, looked up by binary search."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from dflax.heavy_hitters.words import ascending, is_less, shifted_left


class Candidates(NamedTuple):
    """A set of prefixes of one length.

    Attributes:
      words: `[D, W]` uint32, ascending; what lies beyond `size` says nothing.
      size: `[]` int32, how many there are.
    """

    words: UInt32[Array, "D W"]
    size: Int[Array, ""]

    @property
    def valid(self) -> Bool[Array, " D"]:
        """`[D]` which rows are prefixes."""
        return jnp.arange(self.words.shape[0]) < self.size


def children(parents: Candidates, width: Int[Array, ""], widest: int, capacity: int) -> Candidates:
    """All prefixes that are `width` bits longer.

    Args:
      parents: `[P]` prefixes.
      width: `[]` int32 bits that are added, at most `widest`.
      widest: static.
      capacity: D, no less than there can be children.
    """
    count, length = parents.words.shape
    ends = jnp.arange(1 << widest, dtype=jnp.uint32)
    words = jnp.broadcast_to(
        shifted_left(parents.words, width)[:, None], (count, len(ends), length)
    )
    words = words.at[..., -1].add(ends)
    valid = parents.valid[:, None] & (
        ends < jnp.left_shift(jnp.uint32(1), width.astype(jnp.uint32))
    )
    return _cut(words.reshape(-1, length), valid.reshape(-1), capacity)


def those(candidates: Candidates, kept: Bool[Array, " D"], capacity: int) -> Candidates:
    """A subset, in as many rows as `capacity` says."""
    return _cut(candidates.words, kept & candidates.valid, capacity)


def find(candidates: Candidates, prefixes: UInt32[Array, "n W"]) -> Int[Array, " n"]:
    """At which place each prefix is, `[n]` int32; -1 for those that are no candidates."""
    rows = candidates.words.shape[0]

    def halve(_: Int[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        less = is_less(candidates.words[jnp.minimum(middle, rows - 1)], prefixes)
        less = less & (low < high)
        return jnp.where(less, middle + 1, low), jnp.where(less, high, middle)

    start = jnp.zeros(prefixes.shape[0], jnp.int32)
    bounds = (start, start + candidates.size)
    place, _ = jax.lax.fori_loop(0, rows.bit_length(), halve, bounds)
    there = jnp.all(candidates.words[jnp.minimum(place, rows - 1)] == prefixes, axis=-1)
    return jnp.where(there & (place < candidates.size), place, -1)


def largest(values: Float[Array, " D"], valid: Bool[Array, " D"], count: int) -> Int[Array, " t"]:
    """Places of the `count` largest valid values, largest first; of equal ones the first comes first."""
    return jax.lax.top_k(jnp.where(valid, values, -jnp.inf), count)[1]


def chosen(
    places: Int[Array, " t"], how_many: Int[Array, ""], length: int
) -> Bool[Array, " length"]:
    """The first `how_many` of some places, as a mask."""
    kept = jnp.where(jnp.arange(places.shape[0]) < how_many, places, length)
    return jnp.zeros(length, bool).at[kept].set(True, mode="drop")


def _cut(words: UInt32[Array, "n W"], valid: Bool[Array, " n"], capacity: int) -> Candidates:
    """The valid rows, sorted, the first `capacity` of them."""
    rows, _, _ = ascending(words, valid)
    missing = max(0, capacity - rows.shape[0])
    rows = jnp.pad(rows[:capacity], [(0, missing), (0, 0)])
    return Candidates(rows, jnp.minimum(jnp.sum(valid, dtype=jnp.int32), capacity))
