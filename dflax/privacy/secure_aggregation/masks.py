"""Masks that cancel in a sum: who shares one with whom, what they are, and when they come off."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree, UInt32

from dflax.clients import against

Words = PyTree[UInt32[Array, "..."]]


class Ring(NamedTuple):
    """Participants on a ring in an order of the round; neighbours are up to `reach` places apart.

    With a reach of half the participants everybody is everybody's neighbour.

    Attributes:
      place: `[m]` int32, the place of every row's client; participants have the first ones.
      row: `[m]` int32, the row at every place.
      participants: `[]` int32, how many there are.
      reach: static.
    """

    place: Int[Array, " m"]
    row: Int[Array, " m"]
    participants: Int[Array, ""]
    reach: int

    def ahead(self, steps: Int[Array, ""] | int) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
        """The row so many places ahead of each, and whether the two share a mask, each pair once."""
        other = self.row[(self.place + steps) % jnp.maximum(self.participants, 1)]
        pairs = (2 * steps < self.participants) | (
            (2 * steps == self.participants) & (self.place < steps)
        )
        return other, pairs & (self.place < self.participants)

    def neighbours_among(self, there: Bool[Array, " m"]) -> Int[Array, " m"]:
        """How many neighbours of each are among these, `[m]` int32; 0 for who does not participate."""
        if 2 * self.reach >= len(there) - 1:
            inside = self.place < self.participants
            return jnp.where(inside, jnp.sum(there & inside) - there, 0).astype(jnp.int32)

        def add(count: Array, steps: Array) -> tuple[Array, None]:
            other, share = self.ahead(steps)
            count = count + (share & there[other])
            return count.at[other].add(share & there), None

        zeros = jnp.zeros(there.shape, jnp.int32)
        return jax.lax.scan(add, zeros, jnp.arange(1, self.reach + 1))[0]


def ring(key: Key[Array, ""], participates: Bool[Array, " m"], neighbours: int | None) -> Ring:
    """The ring of a round, in a random order; everybody next to everybody where `neighbours` is None."""
    m = len(participates)
    bits = jax.random.bits(key, (m,), jnp.uint32) >> 1
    row = jnp.argsort(bits | (~participates).astype(jnp.uint32) << 31).astype(jnp.int32)
    place = jnp.zeros(m, jnp.int32).at[row].set(jnp.arange(m, dtype=jnp.int32))
    reach = m // 2 if neighbours is None else min(neighbours // 2, m // 2)
    return Ring(place, row, jnp.sum(participates, dtype=jnp.int32), reach)


def removable(
    ring: Ring,
    sent: Bool[Array, " m"],
    answer: Bool[Array, " m"],
    threshold: int | Int[Array, ""] | None,
) -> Bool[Array, ""]:
    """Whether the server can take all masks off the sum of those who sent.

    It needs `threshold` shares of the self-mask of everybody who sent, and of the pair secret of
    everybody who participates, did not send, and has a neighbour that did. The shares of a secret lie
    with its owner and its neighbours. None: more than half of them.
    """
    participates = ring.place < ring.participants
    holders = ring.neighbours_among(participates) + 1
    needed = holders // 2 + 1 if threshold is None else jnp.asarray(threshold, jnp.int32)
    shares = ring.neighbours_among(answer) + answer
    wanted = sent | (ring.neighbours_among(sent) > 0)
    return jnp.all(~(wanted & participates) | (shares >= needed))


def masked(key: Key[Array, ""], ring: Ring, words: Words) -> Words:
    """Every participant's words plus its own mask, plus or minus those that it shares, mod 2^32.

        y_i = k_i + PRG(b_i) + sum over neighbours j of (+ or -) PRG(s_ij)

    `+` where i comes first in the pair, `-` for the other one.
    """
    participates = ring.place < ring.participants
    own = _self_masks(key, words)
    out = jax.tree.map(lambda k, b: k + jnp.where(against(participates, b), b, 0), words, own)

    def add(out: Words, steps: Array) -> tuple[Words, None]:
        other, share = ring.ahead(steps)
        masks = _pair_masks(key, other, share, words)
        return jax.tree.map(lambda y, mask: (y + mask).at[other].add(-mask), out, masks), None

    return jax.lax.scan(add, out, jnp.arange(1, ring.reach + 1))[0]


def unmasking(key: Key[Array, ""], ring: Ring, sent: Bool[Array, " m"], words: Words) -> Words:
    """What the masks of those who sent add up to, `[...]`: their own, and what no partner cancels."""
    own = _self_masks(key, words)
    total = jax.tree.map(
        lambda b: jnp.sum(jnp.where(against(sent, b), b, 0), axis=0, dtype=jnp.uint32), own
    )

    def add(total: Words, steps: Array) -> tuple[Words, None]:
        other, share = ring.ahead(steps)
        masks = _pair_masks(key, other, share, words)
        plus, minus = sent & ~sent[other], ~sent & sent[other]

        def left(total: Array, mask: Array) -> Array:
            kept = jnp.where(against(plus, mask), mask, 0)
            lone = kept - jnp.where(against(minus, mask), mask, 0)
            return total + jnp.sum(lone, axis=0, dtype=jnp.uint32)

        return jax.tree.map(left, total, masks), None

    return jax.lax.scan(add, total, jnp.arange(1, ring.reach + 1))[0]


def _self_masks(key: Key[Array, ""], words: Words) -> Words:
    m = len(jax.tree.leaves(words)[0])
    rows = jnp.arange(m)
    return _drawn(
        jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), i))(rows), words
    )


def _pair_masks(
    key: Key[Array, ""], other: Int[Array, " m"], share: Bool[Array, " m"], words: Words
) -> Words:
    """The mask of every row's client with that of another row; 0 where the two share none."""
    rows = jnp.arange(len(other))
    low, high = jnp.minimum(rows, other), jnp.maximum(rows, other)
    pair = jax.vmap(lambda i, j: jax.random.fold_in(jax.random.fold_in(key, i), j))(low, high)
    masks = _drawn(pair, words)
    return jax.tree.map(lambda mask: jnp.where(against(share, mask), mask, 0), masks)


def _drawn(keys: Key[Array, " m"], words: Words) -> Words:
    """Uniform 32-bit words of the shapes of `words`, row i from key i."""
    leaves, structure = jax.tree.flatten(words)

    def draw(number: int, shape: tuple[int, ...]) -> Array:
        return jax.vmap(
            lambda key: jax.random.bits(jax.random.fold_in(key, number), shape[1:], jnp.uint32)
        )(keys)

    drawn: Iterator[Array] = (draw(n, leaf.shape) for n, leaf in enumerate(leaves))
    return jax.tree.unflatten(structure, list(drawn))
