"""What every node believes of the population: who has joined, and when each was last seen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Views(NamedTuple):
    """One row per observer.

    Attributes:
      last_active: `[n, n]` int32, the last round in which the observer knows the other to be active; -1
        unknown.
      counter: `[n, n]` int32, number of the newest membership event known; larger is newer.
      joined: `[n, n]`, what that event said.
      pending: `[n, n]`, joins heard of, applied after the observer's next message.
    """

    last_active: Int[Array, "n n"]
    counter: Int[Array, "n n"]
    joined: Bool[Array, "n n"]
    pending: Bool[Array, "n n"]


def equal_views(joined: Bool[Array, " n"]) -> Views:
    """Everyone knows who is there at the start, and nothing of the others."""
    n = joined.shape[0]
    known = jnp.broadcast_to(joined, (n, n))
    return Views(
        jnp.where(known, 0, -1).astype(jnp.int32),
        known.astype(jnp.int32),
        known,
        jnp.zeros((n, n), bool),
    )


def merge(first: Views, second: Views) -> Views:
    """Two views as one: the later activity, the newer membership event; nobody's pending joins but own.

    Commutative, associative and idempotent in what is known.
    """
    newer = second.counter > first.counter
    # A tie of counters speaks of one event; `or` keeps the merge symmetric whatever it said.
    tie = (second.counter == first.counter) & second.joined
    return Views(
        jnp.maximum(first.last_active, second.last_active),
        jnp.maximum(first.counter, second.counter),
        jnp.where(newer, second.joined, first.joined | tie),
        first.pending,
    )


def merge_rows(rows: Views, counted: Bool[Array, " s"]) -> Views:
    """The merge of those of s views that count, leaves `[s, n]` to `[n]`."""
    mask = counted[:, None]
    number = jnp.where(mask, rows.counter, -1)
    newest = number.max(0)
    said = (number == newest) & rows.joined & mask
    return Views(
        jnp.where(mask, rows.last_active, -1).max(0),
        newest,
        said.any(0),
        jnp.zeros(rows.pending.shape[1:], bool),
    )


def row(views: Views, observer: Array) -> Views:
    """One observer's view, or several observers': leaves `[n]`, or `[s, n]`."""
    return jax.tree.map(lambda leaf: leaf[observer], views)


def put(views: Views, observers: Array, rows: Views) -> Views:
    """The views with some observers' rows replaced; ids from n on are dropped."""
    return jax.tree.map(lambda leaf, new: leaf.at[observers].set(new, mode="drop"), views, rows)


def candidates(view: Views, observer: Array, round: Array, inactivity: Array) -> Bool[Array, " n"]:
    """Whom the observer would ask in a round: joined, and seen within the last rounds; itself always."""
    itself = jnp.arange(view.joined.shape[-1]) == observer
    return (view.joined & (view.last_active >= round - inactivity)) | itself


def flush(view: Views, round: Array) -> Views:
    """Pending joins become members, seen in this round."""
    fresh = view.pending & ~view.joined
    return Views(
        jnp.where(fresh, jnp.maximum(view.last_active, round), view.last_active),
        view.counter + fresh,
        view.joined | fresh,
        jnp.zeros_like(view.pending),
    )
