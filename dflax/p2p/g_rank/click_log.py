"""Logs of clicks: one table of all clicks ever made, and who knows which of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation


class ClickLog(NamedTuple):
    """What n peers have clicked and know of each other's clicks.

    A log that grows is a row of `known` over one table of E places; gossip is an OR of rows, which is
    exact. A click is appended for good.

    Attributes:
      origin: `[E]` int32, who clicked; -1 in free places.
      term: `[E]` int32, what was searched for.
      item: `[E]` int32, what was clicked.
      used: `[]` int32, places taken.
      known: `[n, E]` whether a peer knows a click.
      aware: `[n, n]` whether peer i knows that j exists.
    """

    origin: Int[Array, " E"]
    term: Int[Array, " E"]
    item: Int[Array, " E"]
    used: Int[Array, ""]
    known: Bool[Array, "n E"]
    aware: Bool[Array, "n n"]


def empty_log(peers: int, capacity: int) -> ClickLog:
    """A log of no clicks, of peers who know of nobody.

    Args:
      peers: n >= 1.
      capacity: E >= 1, clicks that there will be at most.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("peers", peers, low=1)
    validation.integer("capacity", capacity, low=1)
    free = jnp.full((capacity,), -1, jnp.int32)
    return ClickLog(
        origin=free,
        term=free,
        item=free,
        used=jnp.zeros((), jnp.int32),
        known=jnp.zeros((peers, capacity), bool),
        aware=jnp.zeros((peers, peers), bool),
    )


def clicked(
    log: ClickLog, peer: Int[Array, ""], term: Int[Array, ""], item: Int[Array, ""]
) -> ClickLog:
    """The log with one click more, which only `peer` knows; a full log stays as it is."""
    place = log.used
    free = place < log.origin.shape[0]
    # A place beyond the table is dropped.
    return log._replace(
        origin=log.origin.at[place].set(peer, mode="drop"),
        term=log.term.at[place].set(term, mode="drop"),
        item=log.item.at[place].set(item, mode="drop"),
        used=place + free,
        known=log.known.at[peer, place].set(True, mode="drop"),
    )


def told(log: ClickLog, teller: Int[Array, ""], hearer: Int[Array, ""], some: Array) -> ClickLog:
    """The log after `hearer` has got all that `teller` knows, if `some`.

    The hearer becomes aware of everybody whose clicks it knows now.

    Args:
      log: see `ClickLog`.
      teller: `[]` a peer.
      hearer: `[]` a peer.
      some: `[]` whether it happens at all, or `[E]` of which places.
    """
    gained = log.known[teller] & some
    row = log.known[hearer] | gained
    aware = log.aware[hearer] | (origins(log, row) & jnp.any(some))
    return log._replace(known=log.known.at[hearer].set(row), aware=log.aware.at[hearer].set(aware))


def origins(log: ClickLog, row: Bool[Array, " E"]) -> Bool[Array, " n"]:
    """`[n]` whose clicks are among those of one peer's log."""
    peers = log.known.shape[0]
    return (
        jnp.zeros((peers,), bool).at[log.origin].max(row, mode="drop", wrap_negative_indices=False)
    )


def sampled(
    log: ClickLog, peer: Int[Array, ""], share: float | Float[Array, ""], key: Key[Array, ""]
) -> Bool[Array, " E"]:
    """`[E]` a random sample of ceil(share x its size) of what a peer knows, without replacement."""
    row = log.known[peer]
    size = jnp.ceil(share * jnp.sum(row) - 1e-4).astype(jnp.int32)
    drawn = jnp.where(row, jax.random.uniform(key, row.shape), 2.0)
    ranks = jnp.zeros(row.shape, jnp.int32).at[jnp.argsort(drawn)].set(jnp.arange(row.shape[0]))
    return row & (ranks < size)


def counts(log: ClickLog, row: Bool[Array, " E"], terms: int, items: int) -> Int[Array, "Q M"]:
    """`[Q, M]` how many clicks among `row` chose each item for each term."""
    place = jnp.where(row, log.term * items + log.item, terms * items)
    flat = jnp.zeros((terms * items,), jnp.int32).at[place].add(1, mode="drop")
    return flat.reshape(terms, items)
