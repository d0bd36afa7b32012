"""What a peer knows of who likes what and who trusts whom: statements, of which the newest counts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.p2p.order import larger


class View(NamedTuple):
    """One peer's knowledge of U users and M items; a network of peers has a leading axis more.

    Attributes:
      affinity: `[U, M]` >= 0, how much a user likes an item; 0 where nothing is known.
      affinity_time: `[U, M]` int32, when that was said; -1 where nothing was.
      trust: `[U, U]` >= 0, how much a user trusts another; none in itself.
      trust_time: `[U, U]` int32.
    """

    affinity: Float[Array, "U M"]
    affinity_time: Int[Array, "U M"]
    trust: Float[Array, "U U"]
    trust_time: Int[Array, "U U"]


class Statements(NamedTuple):
    """k statements of one kind, each of one edge.

    Attributes:
      source: `[k]` int32, the user whose edge it is; -1 for no statement.
      target: `[k]` int32, the item or the user at its end.
      weight: `[k]` >= 0; 0 takes the edge away.
      time: `[k]` int32, when it was said.
    """

    source: Int[Array, " k"]
    target: Int[Array, " k"]
    weight: Float[Array, " k"]
    time: Int[Array, " k"]


def view(affinity: Float[Array, "U M"], trust: Float[Array, "U U"], *, time: int = 0) -> View:
    """A view in which all edges were stated at one time.

    Args:
      affinity: `[U, M]` >= 0.
      trust: `[U, U]` >= 0, 0 on the diagonal.
      time: >= 0.

    Raises:
      TypeError, ValueError: naming the argument; a user who trusts itself.
    """
    likes = validation.array("affinity", affinity, kind="real", shape=("U", "M"), low=0.0)
    users = likes.shape[0]
    trusts = validation.array("trust", trust, kind="real", shape=("U", "U"), low=0.0)
    if trusts.shape != (users, users):
        raise ValueError(
            f"affinity and trust must be of as many users, got {users} rows and a trust of shape "
            f"{trusts.shape}."
        )
    validation.integer("time", time, low=0)
    if not validation.is_traced(trusts) and np.any(np.diagonal(trusts) != 0):
        user = int(np.argmax(np.diagonal(trusts) != 0))
        raise ValueError(
            f"trust must be 0 on the diagonal, got {trusts[user, user]:g} of user {user}."
        )

    def said(edges: Float[Array, "..."]) -> Int[Array, "..."]:
        return jnp.where(edges > 0, jnp.int32(time), -1)

    liking, trusting = jnp.asarray(likes, jnp.float32), jnp.asarray(trusts, jnp.float32)
    return View(liking, said(liking), trusting, said(trusting))


def heard(known: View, likes: Statements | None = None, trusts: Statements | None = None) -> View:
    """The view after statements: each counts if it is newer than what is known of its edge.

    Args:
      known: see `View`.
      likes: of users about items; default none.
      trusts: of users about users; default none. Trust in oneself is not taken.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("known", known, View, "Make it with dflax.p2p.view.")
    for name, value in (("likes", likes), ("trusts", trusts)):
        if value is not None:
            validation.instance(name, value, Statements)
    affinity, liked = known.affinity, known.affinity_time
    trust, trusted = known.trust, known.trust_time
    if likes is not None:
        affinity, liked = _newest(affinity, liked, likes)
    if trusts is not None:
        others = jnp.where(trusts.source == trusts.target, -1, trusts.source)
        trust, trusted = _newest(trust, trusted, trusts._replace(source=others))
    return View(affinity, liked, trust, trusted)


def joined_views(one: View, other: View) -> View:
    """The join of two views: of each edge the newer statement, of equally old ones the larger weight.

    Commutative, associative and idempotent.

    Args:
      one: see `View`.
      other: of the same shapes.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("one", one, View)
    validation.instance("other", other, View)

    def join(a: Array, at: Array, b: Array, bt: Array) -> tuple[Array, Array]:
        newer = larger((bt, b), (at, a))
        return jnp.where(newer, b, a), jnp.maximum(at, bt)

    return View(
        *join(one.affinity, one.affinity_time, other.affinity, other.affinity_time),
        *join(one.trust, one.trust_time, other.trust, other.trust_time),
    )


def _newest(
    weights: Float[Array, "U V"], times: Int[Array, "U V"], said: Statements
) -> tuple[Array, Array]:
    rows, columns = weights.shape
    valid = (said.source >= 0) & (said.target >= 0) & (said.target < columns) & (said.weight >= 0)
    source = jnp.where(valid, said.source, rows)
    target = jnp.where(valid, said.target, 0)
    latest = times.at[source, target].max(said.time, mode="drop")
    seen = times[jnp.minimum(source, rows - 1), target]
    wins = valid & (said.time > seen) & (said.time == latest[jnp.minimum(source, rows - 1), target])
    # Of one edge the largest weight among statements of the same newest time.
    place = jnp.where(wins, source, rows)
    cleared = weights.at[place, target].set(0.0, mode="drop")
    return cleared.at[place, target].max(said.weight, mode="drop"), latest


class Neighbours(NamedTuple):
    """A graph by lists of neighbours, padded; walks read it.

    Attributes:
      items: `[U, a]` int32, what a user likes; -1 beyond.
      liking: `[U, a]` how much; 0 beyond.
      friends: `[U, b]` int32, whom a user trusts; -1 beyond.
      trusting: `[U, b]` how much; 0 beyond.
      fans: `[M]` int32, how many users like an item.
    """

    items: Int[Array, "U a"]
    liking: Float[Array, "U a"]
    friends: Int[Array, "U b"]
    trusting: Float[Array, "U b"]
    fans: Int[Array, " M"]


def neighbours(known: View, *, items: int, friends: int) -> Neighbours:
    """The heaviest edges of every user, as lists of static length.

    Args:
      known: see `View`.
      items: a in [1, M]; who likes more is represented by what it likes most.
      friends: b in [1, U].

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("known", known, View, "Make it with dflax.p2p.view.")
    users, count = known.affinity.shape
    validation.integer("items", items, low=1, high=count)
    validation.integer("friends", friends, low=1, high=users)

    def heaviest(weights: Float[Array, "U V"], most: int) -> tuple[Array, Array]:
        top, place = jax.lax.top_k(weights, most)
        return jnp.where(top > 0, place, -1).astype(jnp.int32), top

    return Neighbours(
        *heaviest(known.affinity, items),
        *heaviest(known.trust, friends),
        jnp.sum(known.affinity > 0, axis=0),
    )


def passed_on(
    known: View,
    key: Key[Array, ""],
    *,
    edges: int = 5,
    window: int = 10_000,
    step: float | Float[Array, ""] = 1.0,
) -> tuple[Statements, Statements]:
    """What a peer gossips: the heaviest edges of one user, of likes and of trust.

    Of each kind an edge among the `window` newest is drawn with a probability in proportion to
    time - oldest time among them + `step`; its user's `edges` heaviest edges are passed on. Older edges
    are never drawn, which is how little a peer has to remember.

    Args:
      known: see `View`.
      key: typed.
      edges: of a message, >= 1.
      window: W >= 1.
      step: what the oldest edge has in proportion to one unit of time, > 0; traceable.

    Returns:
      `Statements` about items and about users, for `heard`; those that do not exist have source -1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("known", known, View, "Make it with dflax.p2p.view.")
    validation.typed_key("key", key)
    validation.integer("edges", edges, low=1)
    validation.integer("window", window, low=1)
    validation.real("step", step, low=0.0, low_open=True, scalar=True)

    def of_kind(weights: Float[Array, "U V"], times: Int[Array, "U V"], key: Array) -> Statements:
        users, columns = weights.shape
        newest, place = jax.lax.top_k(times.reshape(-1), min(window, users * columns))
        there = newest >= 0
        oldest = jnp.min(jnp.where(there, newest, validation.LARGEST_COUNT))
        chance = jnp.where(there, newest - oldest + step, 0.0)
        drawn = jax.random.categorical(
            key, jnp.where(there, jnp.log(jnp.maximum(chance, 1e-30)), -jnp.inf)
        )
        user = (place[drawn] // columns).astype(jnp.int32)
        # What was taken away is news as well, behind all that is there.
        stated = times[user] >= 0
        _, target = jax.lax.top_k(jnp.where(stated, weights[user], -1.0), min(edges, columns))
        some = stated[target] & jnp.any(there)
        return Statements(
            jnp.where(some, user, -1),
            target.astype(jnp.int32),
            weights[user, target],
            times[user, target],
        )

    one, other = jax.random.split(key)
    return (
        of_kind(known.affinity, known.affinity_time, one),
        of_kind(known.trust, known.trust_time, other),
    )
