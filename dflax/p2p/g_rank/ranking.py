"""How a peer ranks the items of a search: similarity of click logs, scores, rivals of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.p2p.g_rank.click_log import ClickLog


class Search(NamedTuple):
    """What a peer ranks by.

    Attributes:
      log: of everybody; a scorer reads no row of `known` but its peer's.
      peer: `[]` int32, who searches.
      term: `[]` int32, what for.
      tags: `[M, Q]` which item carries which term.
      key: for what is random.
    """

    log: ClickLog
    peer: Int[Array, ""]
    term: Int[Array, ""]
    tags: Bool[Array, "M Q"]
    key: Key[Array, ""]


# The scores `[M]` of the items; larger is better.
Scorer = Callable[[Search], Float[Array, " M"]]


def similarities(
    log: ClickLog,
    peer: Int[Array, ""],
    tags: Bool[Array, "M Q"],
    *,
    top: int = 10,
    gate: bool = True,
    square: str = "clicks",
) -> Float[Array, " n"]:
    """How alike a peer and each other clicked, by what the peer knows.

        S~(j) = (kt + km^2) / ku,      S(j) = S~(j) / max_j S~(j)

    with kt the terms that are among the `top` most frequent of both, km the (term, item) pairs that
    both clicked, ku the items that either clicked; 0 where ku is 0.

    Args:
      log: see `ClickLog`.
      peer: `[]` int32, i.
      tags: `[M, Q]`, for its shape.
      top: K in [1, Q]. Among equally frequent terms the lower number counts as more frequent.
      gate: whether who has no pair in common has similarity 0.
      square: "clicks" as the paper writes it; "terms" for (km + kt^2) / ku, the authors' notebook.

    Returns:
      `[n]` in [0, 1]; 1 for the peer itself once it knows a click of its own.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("log", log, ClickLog)
    validation.array("tags", tags, kind="boolean", shape=("M", "Q"))
    items, terms = tags.shape
    last = log.known.shape[0] - 1
    validation.array("peer", peer, kind="integer", shape=(), low=0, high=last)
    validation.integer("top", top, low=1, high=terms)
    validation.flag("gate", gate)
    validation.choice("square", square, ("clicks", "terms"))
    peers = log.known.shape[0]
    row = log.known[peer]
    # What is not known goes to a place beyond the table, which is dropped.
    origin = jnp.where(row, log.origin, peers)
    often = jnp.zeros((peers, terms), jnp.int32).at[origin, log.term].add(1, mode="drop")
    pairs = jnp.zeros((peers, terms * items), bool)
    pairs = pairs.at[origin, log.term * items + log.item].set(True, mode="drop")
    seen = jnp.zeros((peers, items), bool).at[origin, log.item].set(True, mode="drop")

    _, places = jax.lax.top_k(often, top)
    frequent = jnp.zeros((peers, terms), bool).at[jnp.arange(peers)[:, None], places].set(True)
    frequent = frequent & (often > 0)
    common_terms = jnp.sum(frequent & frequent[peer], axis=1)
    common_pairs = jnp.sum(pairs & pairs[peer], axis=1)
    either = jnp.sum(seen | seen[peer], axis=1)
    if square == "clicks":
        alike = common_terms + jnp.square(common_pairs)
    else:
        alike = common_pairs + jnp.square(common_terms)
    raw = jnp.where(either > 0, alike / jnp.maximum(either, 1), 0.0)
    if gate:
        raw = jnp.where(common_pairs > 0, raw, 0.0)
    largest = jnp.max(raw)
    return jnp.where(largest > 0, raw / jnp.where(largest > 0, largest, 1.0), 0.0)


def g_rank_score(
    isolation: float | Float[Array, ""] = 0.0,
    *,
    top: int = 10,
    gate: bool = True,
    square: str = "clicks",
) -> Scorer:
    """Clicks weighted by who made them: R(m) = sum_j C(j, term, m) (S(j) + F).

    Args:
      isolation: F in [0, 1]; traceable. At 0 who is not alike has no say, at large F all have.
      top: see `similarities`.
      gate: see `similarities`.
      square: see `similarities`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.probability("isolation", isolation)
    validation.integer("top", top, low=1)
    validation.flag("gate", gate)
    validation.choice("square", square, ("clicks", "terms"))

    def score(search: Search) -> Float[Array, " M"]:
        alike = similarities(
            search.log, search.peer, search.tags, top=top, gate=gate, square=square
        )
        return _weighted(search, alike + isolation)

    return score


def popularity_score() -> Scorer:
    """All known clicks alike: R(m) = sum_j C(j, term, m)."""
    return lambda search: _weighted(search, jnp.ones(search.log.known.shape[0]))


def local_score() -> Scorer:
    """A peer's own clicks alone: R(m) = C(i, term, m)."""

    def score(search: Search) -> Float[Array, " M"]:
        own = jnp.arange(search.log.known.shape[0]) == search.peer
        return _weighted(search, own.astype(jnp.float32))

    return score


def random_score() -> Scorer:
    """A random order."""
    return lambda search: jax.random.uniform(search.key, search.tags.shape[:1])


def results(scores: Float[Array, " M"], matches: Bool[Array, " M"]) -> Int[Array, " M"]:
    """`[M]` the items in order: those that match first, then by score, then by number."""
    by_score = jnp.argsort(-scores, stable=True)
    return by_score[jnp.argsort(~matches[by_score], stable=True)]


def searched(scorer: Scorer, search: Search) -> Int[Array, " M"]:
    """`[M]` the list that a search returns.

    A term of which the peer knows no click has its matches in random order; a term that no item
    carries has what was clicked most.
    """
    log = search.log
    guessing, scoring = jax.random.split(search.key)
    row, matches = log.known[search.peer], search.tags[:, search.term]
    known = jnp.any(row & (log.term == search.term))
    items = search.tags.shape[0]
    anything = jnp.zeros((items,)).at[jnp.where(row, log.item, items)].add(1.0, mode="drop")
    guess = jnp.where(jnp.any(matches), jax.random.uniform(guessing, (items,)), anything)
    return results(jnp.where(known, scorer(search._replace(key=scoring)), guess), matches)


def _weighted(search: Search, weights: Float[Array, " n"]) -> Float[Array, " M"]:
    log, items = search.log, search.tags.shape[0]
    counted = log.known[search.peer] & (log.term == search.term)
    place = jnp.where(counted, log.item, items)
    return jnp.zeros((items,)).at[place].add(weights[jnp.maximum(log.origin, 0)], mode="drop")
