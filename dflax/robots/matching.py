"""Maximum matching of a general graph, whose matched vertices do not depend on how it was found."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from dflax import validation

NOBODY = -1
WORD = 32


class _Search(NamedTuple):
    """A search for alternating paths in the middle of its work; V vertices.

    Attributes:
      mate: `[V]` who each vertex is matched with, or NOBODY.
      parent: `[V]` by which even vertex an odd one was found; in a blossom, the way round it.
      base: `[V]` the base of the blossom that a vertex lies in, itself outside of blossoms.
      even: `[V]` vertices at an even distance from the root, those in blossoms among them.
      odd: `[V]` vertices at an odd distance.
      frozen: `[V]` vertices of trees that were searched in vain; no later search needs them.
      root: `[]` where the tree grows from, NOBODY between two trees.
      done: `[]` whether no root is left.
    """

    mate: Int[Array, " V"]
    parent: Int[Array, " V"]
    base: Int[Array, " V"]
    even: Bool[Array, " V"]
    odd: Bool[Array, " V"]
    frozen: Bool[Array, " V"]
    root: Int[Array, ""]
    done: Bool[Array, ""]


def maximum_matching(
    adjacency: Bool[Array, "V V"], start: Int[Array, " V"] | None = None
) -> Int[Array, " V"]:
    """A maximum matching of an undirected graph, by Edmonds' blossoms.

    Of all sets of vertices that a maximum matching can cover it covers the first in the order of words:
    the set that has 0 if any of them has 0, then 1 if any of those has 1, and so on. That set is a
    function of the edges alone, whatever order they came in and whatever the search started from: the
    sets that matchings can cover are the independent sets of a matroid, and a greedy choice has one
    outcome. So an old matching may be carried on when edges are added.

    For each vertex in order that is not covered, a tree of alternating paths is grown from it, a level
    at a time. A path to another uncovered vertex makes the matching larger. An even path to a covered
    vertex of a higher number changes places with that vertex. A tree with neither is out of all later
    searches. O(V^3) at worst; a level costs V^2 / 32 operations on words.

    Args:
      adjacency: `[V, V]` booleans, symmetric; the diagonal does not count.
      start: `[V]` int32, partners to start from, -1 for nobody. Pairs that are no edges are dropped.

    Returns:
      `[V]` int32, each vertex's partner, -1 where it has none.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Edmonds, Paths, trees, and flowers, Canadian Journal of Mathematics 17, 1965.
    """
    adjacency = jnp.asarray(
        validation.array("adjacency", adjacency, kind="boolean", shape=("V", "V"))
    )
    vertices = adjacency.shape[0]
    if adjacency.shape[1] != vertices:
        raise ValueError(f"adjacency must be square, got shape {adjacency.shape}.")
    if start is None:
        start = jnp.full(vertices, NOBODY, jnp.int32)
    else:
        start = jnp.asarray(
            validation.array(
                "start", start, kind="integer", shape=(vertices,), low=NOBODY, high=vertices - 1
            ),
            jnp.int32,
        )
    return matched(packed(adjacency & ~jnp.eye(vertices, dtype=bool)), start)


def packed(adjacency: Bool[Array, "V *rest"]) -> UInt32[Array, "W *rest"]:
    """Booleans as bits of words: bit b of word w is entry 32 w + b of the leading axis."""
    size = adjacency.shape[0]
    padding = [(0, -size % WORD)] + [(0, 0)] * (adjacency.ndim - 1)
    bits = jnp.pad(adjacency, padding).reshape(-1, WORD, *adjacency.shape[1:])
    weight = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)
    weight = weight.reshape(-1, *(1,) * (adjacency.ndim - 1))
    return jnp.where(bits, weight, jnp.uint32(0)).sum(1, dtype=jnp.uint32)


def matched(neighbours: UInt32[Array, "W V"], start: Int[Array, " V"]) -> Int[Array, " V"]:
    """`maximum_matching` of neighbours as bits: those of vertex v in column v, symmetric."""
    vertices = start.shape[0]
    everyone = jnp.arange(vertices, dtype=jnp.int32)
    word = neighbours[jnp.maximum(start, 0) // WORD, everyone]
    edge = (word >> (jnp.maximum(start, 0) % WORD).astype(jnp.uint32)) & 1
    mutual = start[jnp.maximum(start, 0)] == everyone
    mate = jnp.where((start >= 0) & (edge == 1) & mutual, start, NOBODY)
    nothing = jnp.zeros(vertices, bool)
    search = _Search(
        mate=mate,
        parent=jnp.zeros_like(mate),
        base=everyone,
        even=nothing,
        odd=nothing,
        frozen=nothing,
        root=jnp.int32(NOBODY),
        done=jnp.zeros((), bool),
    )
    search = jax.lax.while_loop(lambda s: ~s.done, lambda s: _level(neighbours, s), search)
    return search.mate


@jax.jit
def _level(neighbours: UInt32[Array, "W V"], search: _Search) -> _Search:
    """One more level of the tree, and what follows from it."""
    everyone = jnp.arange(search.mate.shape[0], dtype=jnp.int32)
    search = _rooted(neighbours, search)
    nearest = _first_among(neighbours, search.even)
    reached = nearest >= 0
    found = reached & ~(search.even | search.odd | search.frozen) & ~search.done
    # Of two partners that are both found the first becomes odd, and so the second even.
    found = found & ~(
        found[jnp.maximum(search.mate, 0)] & (search.mate >= 0) & (search.mate < everyone)
    )
    grows = jnp.any(found)
    free = found & (search.mate < 0)
    # Where a free vertex is found, the tree ends; what else grew is forgotten.
    odd, even = search.odd | found, search.even
    even = even | jnp.where(search.mate >= 0, found[jnp.maximum(search.mate, 0)], False)
    parent = jnp.where(found, nearest, search.parent)
    search = search._replace(odd=odd, even=even, parent=parent)
    # Two even vertices side by side: inside of a blossom, or a blossom to be.
    doubtful = ~grows & jnp.any(search.even & reached) & ~search.done
    search, shrunk = _shrunk(neighbours, search, doubtful)
    later = search.even & (everyone > search.root) & (search.root >= 0)
    swaps = jnp.any(later) & ~jnp.any(free)
    last = jnp.max(jnp.where(later, everyone, 0))
    end = jnp.where(swaps, search.mate[last], jnp.argmax(free).astype(jnp.int32))
    mate = search.mate.at[last].set(jnp.where(swaps, NOBODY, search.mate[last]))
    succeeds = swaps | jnp.any(free)
    mate = _flipped(mate, search.parent, jnp.where(succeeds, end, NOBODY))
    vain = ~succeeds & ~grows & ~shrunk
    over = succeeds | vain
    frozen = search.frozen | (vain & (search.even | search.odd))
    return search._replace(
        mate=mate,
        base=jnp.where(over, everyone, search.base),
        even=search.even & ~over,
        odd=search.odd & ~over,
        frozen=frozen,
        root=jnp.where(over, NOBODY, search.root),
    )


def _rooted(neighbours: UInt32[Array, "W V"], search: _Search) -> _Search:
    """Between two trees, the next root: the first free vertex with a neighbour that is not frozen."""
    hopeful = (search.mate < 0) & ~search.frozen & (_first_among(neighbours, ~search.frozen) >= 0)
    between = search.root < 0
    root = jnp.where(between, jnp.argmax(hopeful).astype(jnp.int32), search.root)
    starts = between & jnp.any(hopeful)
    everyone = jnp.arange(search.mate.shape[0], dtype=jnp.int32)
    return search._replace(
        root=jnp.where(starts | ~between, root, NOBODY),
        even=search.even | (starts & (everyone == root)),
        done=search.done | (between & ~starts),
    )


def _first_among(neighbours: UInt32[Array, "W V"], members: Bool[Array, " V"]) -> Int[Array, " V"]:
    """Each vertex's first neighbour among the members, -1 where it has none."""
    words = neighbours & packed(members)[:, None]
    lowest = jax.lax.population_count((words & -words) - 1).astype(jnp.int32)
    place = lowest + WORD * jnp.arange(words.shape[0], dtype=jnp.int32)[:, None]
    beyond = WORD * words.shape[0]
    first = jnp.min(jnp.where(words == 0, beyond, place), axis=0)
    return jnp.where(first == beyond, NOBODY, first)


def _flipped(
    mate: Int[Array, " V"], parent: Int[Array, " V"], end: Int[Array, ""]
) -> Int[Array, " V"]:
    """The matching after exchanging the edges of the path from `end` to the root; none from NOBODY."""

    def exchange(at: tuple[Array, Array]) -> tuple[Array, Array]:
        mate, odd = at
        even = parent[odd]
        following = mate[even]
        return mate.at[odd].set(even).at[even].set(odd), following

    return jax.lax.while_loop(lambda at: at[1] >= 0, exchange, (mate, end))[0]


def _shrunk(
    neighbours: UInt32[Array, "W V"], search: _Search, doubtful: Bool[Array, ""]
) -> tuple[_Search, Bool[Array, ""]]:
    """The search with one more blossom, if two even vertices of different blossoms are neighbours.

    This is a loop of at most one turn, so that it costs nothing where no graph of many needs it.
    """
    vertices = search.mate.shape[0]

    def contract(at: tuple[_Search, Array, Array]) -> tuple[_Search, Array, Array]:
        search, _, _ = at
        elsewhere = packed(search.even[:, None] & (search.base[:, None] != search.base))
        words = jnp.where(search.even, neighbours & elsewhere, jnp.uint32(0))
        joined = jnp.any(words != 0, axis=0)
        exists = jnp.any(joined)
        one = jnp.argmax(joined).astype(jnp.int32)
        column = jnp.zeros(vertices, bool).at[one].set(True)
        other = _first_among(jnp.where(column, words, jnp.uint32(0)), search.even)[one]
        base = _meeting(search, one, other, exists)
        members, parent = _round(search, one, base, other, exists)
        more, parent = _round(search._replace(parent=parent), other, base, one, exists)
        inside = (members | more)[search.base] & exists
        search = search._replace(
            base=jnp.where(inside, base, search.base), even=search.even | inside, parent=parent
        )
        return search, jnp.zeros((), bool), exists

    start = (search, doubtful, jnp.zeros((), bool))
    search, _, exists = jax.lax.while_loop(lambda at: at[1], contract, start)
    return search, exists


def _meeting(
    search: _Search, one: Int[Array, ""], other: Int[Array, ""], exists: Bool[Array, ""]
) -> Int[Array, ""]:
    """The base of the first blossom that lies on the ways of both vertices to the root."""

    def up(vertex: Array) -> Array:
        return search.base[search.parent[search.mate[search.base[vertex]]]]

    def climb(at: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        seen, vertex, goes = at
        seen = seen.at[vertex].set(True)
        top = search.mate[vertex] < 0
        return seen, jnp.where(top, vertex, up(vertex)), goes & ~top

    nothing = jnp.zeros(search.mate.shape[0], bool)
    seen, _, _ = jax.lax.while_loop(lambda at: at[2], climb, (nothing, search.base[one], exists))
    return jax.lax.while_loop(lambda v: exists & ~seen[v], up, search.base[other])


def _round(
    search: _Search,
    vertex: Int[Array, ""],
    base: Int[Array, ""],
    child: Int[Array, ""],
    exists: Bool[Array, ""],
) -> tuple[Bool[Array, " V"], Int[Array, " V"]]:
    """Marks the blossoms between a vertex and the base, and lets the way lead round by the child."""

    def climb(at: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        members, parent, vertex, child = at
        mate = search.mate[vertex]
        members = members.at[search.base[vertex]].set(True).at[search.base[mate]].set(True)
        return members, parent.at[vertex].set(child), parent[mate], mate

    nothing = jnp.zeros(search.mate.shape[0], bool)
    start = (nothing, search.parent, vertex, child)
    members, parent, _, _ = jax.lax.while_loop(
        lambda at: exists & (search.base[at[2]] != base), climb, start
    )
    return members, parent
