"""Random walks that stop: over items and trusted users (SALSA), and over trust alone (MeritRank)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import counter, validation
from dflax.p2p.recommendation.view import Neighbours

Real = float | Float[Array, ""]


class Walks(NamedTuple):
    """Where w walks went.

    Attributes:
      visited: `[w, L + 1]` int32; users are 0, ..., U - 1 and items U, ..., U + M - 1; the root first,
        -1 after the end.
    """

    visited: Int[Array, "w L+1"]


class _Walker(NamedTuple):
    user: Int[Array, ""]
    item: Int[Array, ""]
    active: Array


def salsa_walks(
    graph: Neighbours,
    root: Int[Array, ""],
    key: Key[Array, ""],
    *,
    walks: int = 1000,
    length: int = 100,
    stop: Real = 0.1,
    starts: Float[Array, " U"] | None = None,
    cold: Real = 0.0,
    since: Walks | None = None,
    changed: Array | None = None,
) -> Walks:
    """Personalised SALSA walks that go back from items over trusted users alone.

    Before every half-step a walk stops with probability alpha. From a user it goes to an item in
    proportion to the user's liking, never back to the item it comes from. From an item that others
    like too it goes to a user whom the user before trusts and who likes it, in proportion to that
    liking; if there is none, to any user trusted, in proportion to the trust. Where there is nobody it
    stops.

    Args:
      graph: from `neighbours`.
      root: `[]` the user who recommends to itself.
      key: typed.
      walks: w >= 1.
      length: L >= 1, half-steps at most.
      stop: alpha in (0, 1]; traceable.
      starts: `[U]` >= 0: with probability `cold` a walk begins at a user that the root trusts, drawn in
        proportion to this; evenly where all are 0. Default: not at all.
      cold: in [0, 1]; traceable.
      since: walks of before, made with the same sizes: each keeps what it did up to its first visit of
        a user who `changed`, and goes on from there anew. Default: new walks.
      changed: `[U]` bool; goes with `since`.

    Returns:
      `Walks`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Madhwal and Pouwelse, Web3Recommend, arXiv 2307.01411.
    """
    _verify(graph, key, walks, length, stop)
    validation.probability("cold", cold)
    users = graph.items.shape[0]
    validation.array("root", root, kind="integer", shape=(), low=0, high=users - 1)
    if starts is not None:
        validation.array("starts", starts, kind="real", shape=(users,), low=0.0)
    numbers = _numbers(key, walks, length + 1)
    kept = _kept(since, changed, walks, length, users)

    def one(words: Array, old: Int[Array, " L+1"], cut: Int[Array, ""]) -> Int[Array, " L+1"]:
        first = jnp.asarray(root, jnp.int32)
        if starts is not None:
            friends = graph.friends[root]
            weights = jnp.where(friends >= 0, starts[jnp.maximum(friends, 0)], 0.0)
            weights = jnp.where(jnp.sum(weights) > 0, weights, (friends >= 0).astype(weights.dtype))
            place = _drawn(weights, words[0, 1])
            begins = (words[0, 0] < cold) & jnp.any(friends >= 0)
            first = jnp.where(begins, friends[place], first)
        first = jnp.where(cut > 0, old[0], first)

        def half(walker: _Walker, now: tuple) -> tuple[_Walker, Int[Array, ""]]:
            number, (halts, chooses), before = now
            to_item = number % 2 == 1
            item, some_item = _to_item(graph, walker, chooses)
            user, some_user = _to_user(graph, walker, chooses)
            goes = walker.active & (halts >= stop) & jnp.where(to_item, some_item, some_user)
            moved = _Walker(
                jnp.where(goes & ~to_item, user, walker.user),
                jnp.where(goes & to_item, item, walker.item),
                goes,
            )
            keeps = number < cut
            old_item, old_user = (before >= users), (before >= 0) & (before < users)
            moved = _Walker(
                jnp.where(keeps, jnp.where(old_user, before, walker.user), moved.user),
                jnp.where(keeps, jnp.where(old_item, before - users, walker.item), moved.item),
                jnp.where(keeps, before >= 0, moved.active),
            )
            vertex = jnp.where(to_item, moved.item + users, moved.user)
            return moved, jnp.where(moved.active, vertex, -1)

        walker = _Walker(first, jnp.int32(-1), jnp.bool_(True))
        steps = jnp.arange(1, length + 1)
        _, path = jax.lax.scan(half, walker, (steps, words[1:], old[1:]))
        return jnp.concatenate([first[None], path])

    return Walks(jax.vmap(one)(numbers, *kept))


def trust_walks(
    friends: Int[Array, "U b"],
    trusting: Float[Array, "U b"],
    root: Int[Array, ""],
    key: Key[Array, ""],
    *,
    walks: int = 1000,
    length: int = 100,
    stop: Real = 0.1,
) -> Walks:
    """MeritRank's walks on the graph of trust: stop with probability alpha, else go by the trust.

    Args:
      friends: `[U, b]` int32, -1 beyond.
      trusting: `[U, b]` >= 0.
      root: `[]` where walks begin.
      key: typed.
      walks: w >= 1.
      length: L >= 1, steps at most.
      stop: alpha in (0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Nasrulin et al., MeritRank, arXiv 2207.09950.
    """
    users = validation.array("friends", friends, kind="integer", shape=("U", "b"), low=-1).shape
    validation.array("trusting", trusting, kind="real", shape=users, low=0.0)
    validation.array("root", root, kind="integer", shape=(), low=0, high=users[0] - 1)
    _verify_walks(key, walks, length, stop)
    friends, total = jnp.asarray(friends), jnp.cumsum(jnp.asarray(trusting), axis=1)

    def one(words: Array) -> Int[Array, " L+1"]:
        def step(state: tuple, now: Array) -> tuple[tuple, Int[Array, ""]]:
            user, active = state
            row = total[user]
            place = jnp.sum(row <= now[1] * row[-1])
            active = active & (now[0] >= stop) & (row[-1] > 0)
            user = jnp.where(active, friends[user, jnp.minimum(place, row.shape[0] - 1)], user)
            return (user, active), jnp.where(active, user, -1)

        begin = jnp.asarray(root, jnp.int32)
        _, path = jax.lax.scan(step, (begin, jnp.bool_(True)), words)
        return jnp.concatenate([begin[None], path])

    return Walks(jax.vmap(one)(_numbers(key, walks, length)))


def _to_item(
    graph: Neighbours, walker: _Walker, number: Float[Array, ""]
) -> tuple[Int[Array, ""], Array]:
    items = graph.items[walker.user]
    weights = jnp.where(items == walker.item, 0.0, graph.liking[walker.user])
    return items[_drawn(weights, number)], jnp.any(weights > 0)


def _to_user(
    graph: Neighbours, walker: _Walker, number: Float[Array, ""]
) -> tuple[Int[Array, ""], Array]:
    friends, trusting = graph.friends[walker.user], graph.trusting[walker.user]
    theirs = jnp.maximum(friends, 0)
    fits = graph.items[theirs] == walker.item
    liking = jnp.sum(jnp.where(fits, graph.liking[theirs], 0.0), axis=1)
    liking = jnp.where(friends >= 0, liking, 0.0)
    weights = jnp.where(jnp.any(liking > 0), liking, trusting)
    alone = graph.fans[jnp.maximum(walker.item, 0)] <= 1
    return friends[_drawn(weights, number)], jnp.any(weights > 0) & ~alone


def _drawn(weights: Float[Array, " d"], number: Float[Array, ""]) -> Int[Array, ""]:
    """The place that a number in [0, 1) falls on; never one of weight 0 where any is larger."""
    total = jnp.cumsum(weights)
    place = jnp.sum(total <= number * total[-1])
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[0]), 0))
    return jnp.minimum(place, last)


def _numbers(key: Key[Array, ""], walks: int, steps: int) -> Float[Array, "w steps 2"]:
    words = counter.bits(key, walks * steps * 2)
    return counter.uniform(words).reshape(walks, steps, 2)


def _kept(
    since: Walks | None, changed: Array | None, walks: int, length: int, users: int
) -> tuple[Int[Array, "w L+1"], Int[Array, " w"]]:
    """Old paths, and how many of their vertices each keeps."""
    if (since is None) != (changed is None):
        raise ValueError("since and changed must be given together, or neither.")
    if since is None:
        return jnp.full((walks, length + 1), -1, jnp.int32), jnp.zeros((walks,), jnp.int32)
    validation.instance("since", since, Walks)
    if since.visited.shape != (walks, length + 1):
        raise ValueError(
            f"since must be {walks} walks of length {length}, got shape {since.visited.shape}. Walk "
            "with the sizes of before."
        )
    path = since.visited
    at_changed = (path >= 0) & (path < users) & jnp.asarray(changed)[jnp.clip(path, 0, users - 1)]
    cut = jnp.where(jnp.any(at_changed, axis=1), jnp.argmax(at_changed, axis=1) + 1, length + 1)
    return path, cut.astype(jnp.int32)


def _verify(graph: Neighbours, key: Key[Array, ""], walks: int, length: int, stop: Real) -> None:
    validation.instance("graph", graph, Neighbours, "Make it with dflax.p2p.neighbours.")
    _verify_walks(key, walks, length, stop)


def _verify_walks(key: Key[Array, ""], walks: int, length: int, stop: Real) -> None:
    validation.typed_key("key", key)
    validation.integer("walks", walks, low=1)
    validation.integer("length", length, low=1)
    validation.probability("stop", stop, low_open=True)
