"""G-Rank: peers that search, click and gossip, and learn to rank from each other's clicks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics
from dflax.p2p.chosen import anyone
from dflax.p2p.g_rank.click_log import ClickLog, clicked, empty_log, sampled, told
from dflax.p2p.g_rank.ranking import Scorer, Search, searched
from dflax.population import Round


class GRankState(NamedTuple):
    """What a network of peers carries from tick to tick.

    Attributes:
      log: clicks, and who knows them.
      alive: `[n]` whether a peer answers.
      searching: `[n]` whether a peer searches.
      tags: `[M, Q]` which item carries which term.
    """

    log: ClickLog
    alive: Bool[Array, " n"]
    searching: Bool[Array, " n"]
    tags: Bool[Array, "M Q"]


def g_rank(
    scorer: Scorer,
    *,
    peers: int,
    capacity: int,
    attackers: int = 0,
    exploration: float | Float[Array, ""] = 0.5,
    share: float | Float[Array, ""] = 0.1,
    gossip: str = "pull",
) -> Algorithm:
    """Unsupervised learning to rank among peers that gossip their clicks.

    A tick: a peer i and a term are drawn; i ranks the items that carry the term by what it knows; with
    probability `exploration` two places of that list change; i clicks the first and notes it; then it
    gossips. In a pull it gets the whole log of one peer of which it is aware, who becomes aware of it.
    In a push it sends its whole log to one such peer, an attacker to two.

    At first every benign peer has one random click for each term. Peer 0 gets a sample of a random
    peer's log, then every peer i > 0 in turn one of a peer before it.

    Args:
      scorer: how peers rank, from `g_rank_score`, `popularity_score`, `local_score`, `random_score`.
      peers: N >= 2, benign.
      capacity: E, clicks that there will be at most: N Q at first, one a tick, those of attacks.
      attackers: A >= 0, peers N, ..., N + A - 1; they are not there until `joined`.
      exploration: p_swap in [0, 1]; traceable.
      share: rho in (0, 1], of a log at the first contact; traceable.
      gossip: "pull", "push" or "none".

    Returns:
      An `Algorithm` on rounds of a `dflax.Population`, of which it takes the key. `init(key, tags)`
      gets `[M, Q]` bools, each term on an item at least. Metrics: `peer`, `term`, `item`, `size`
      (clicks that the peer knows after the tick), `message` (clicks that were new to who got them),
      `full` (whether the log was full and the click lost).

    Raises:
      TypeError, ValueError: naming the argument; from `init` also `tags`.

    References:
      Gold and Pouwelse, G-Rank, arXiv 2301.12530.
    """
    validation.function("scorer", scorer, "dflax.p2p.g_rank_score makes one.", takes=1)
    validation.integer("peers", peers, low=2)
    validation.integer("capacity", capacity, low=1)
    validation.integer("attackers", attackers, low=0)
    validation.probability("exploration", exploration)
    validation.probability("share", share, low_open=True)
    validation.choice("gossip", gossip, ("pull", "push", "none"))
    everyone = peers + attackers

    def init(key: Key[Array, ""], tags: Bool[Array, "M Q"]) -> GRankState:
        tags = _tags(tags)
        terms = tags.shape[1]
        if capacity < peers * terms:
            raise ValueError(
                f"capacity must hold the first {peers * terms} clicks, one for each of {peers} peers "
                f"and {terms} terms, got {capacity}. Add one for each tick and those of attacks."
            )
        first, meeting = jax.random.split(key)
        drawn = jax.random.uniform(first, (peers, terms, tags.shape[0]))
        item = jnp.argmax(jnp.where(tags.T, drawn, -1.0), axis=2).astype(jnp.int32)
        who, what = jnp.meshgrid(jnp.arange(peers), jnp.arange(terms), indexing="ij")
        count = peers * terms
        log = empty_log(everyone, capacity)
        log = log._replace(
            origin=log.origin.at[:count].set(who.reshape(-1).astype(jnp.int32)),
            term=log.term.at[:count].set(what.reshape(-1).astype(jnp.int32)),
            item=log.item.at[:count].set(item.reshape(-1)),
            used=jnp.asarray(count, jnp.int32),
            known=log.known.at[who.reshape(-1), jnp.arange(count)].set(True),
        )

        def meets(log: ClickLog, peer: Int[Array, ""]) -> tuple[ClickLog, None]:
            choosing, sampling = jax.random.split(jax.random.fold_in(meeting, peer))
            # One of those before; for the first, of those behind it.
            low, high = jnp.where(peer > 0, 0, 1), jnp.where(peer > 0, peer, peers)
            donor = jax.random.randint(choosing, (), low, high)
            return told(log, donor, peer, sampled(log, donor, share, sampling)), None

        log, _ = jax.lax.scan(meets, log, jnp.arange(peers))
        benign = jnp.arange(everyone) < peers
        return GRankState(log, benign, benign, tags)

    def step(state: GRankState, round: Round) -> tuple[GRankState, Metrics]:
        who, what, ranking, swapping, meeting = jax.random.split(round.key, 5)
        peer = anyone(state.searching, who)
        term = jax.random.randint(what, (), 0, state.tags.shape[1])
        listed = searched(scorer, Search(state.log, peer, term, state.tags, ranking))
        item = _explored(listed, jnp.sum(state.tags[:, term]), exploration, swapping)
        full = state.log.used >= capacity
        log = clicked(state.log, peer, term, item)
        before = jnp.sum(log.known)
        if gossip == "pull":
            log = _pulled(log, peer, state.alive, meeting)
        elif gossip == "push":
            twice = peer >= peers
            log = _pushed(log, peer, state.alive, twice, meeting)
        metrics: Metrics = {
            "peer": peer,
            "term": term,
            "item": item,
            "size": jnp.sum(log.known[peer]),
            "message": jnp.sum(log.known) - before,
            "full": full,
        }
        return state._replace(log=log), metrics

    return Algorithm(init, step)


def _tags(tags: Bool[Array, "M Q"]) -> Bool[Array, "M Q"]:
    found = validation.array("tags", tags, kind="boolean", shape=("M", "Q"))
    if not validation.is_traced(found) and not found.any(axis=0).all():
        missing = int((~found.any(axis=0)).argmax())
        raise ValueError(
            f"tags must have an item for every term, got none for term {missing}. Leave that term out."
        )
    return jnp.asarray(found)


def _explored(
    listed: Int[Array, " M"],
    length: Int[Array, ""],
    exploration: float | Float[Array, ""],
    key: Key[Array, ""],
) -> Int[Array, ""]:
    """The first of a list of which, perhaps, two places were exchanged."""
    whether, first, second = jax.random.split(key, 3)
    a = jax.random.randint(first, (), 0, length)
    b = jax.random.randint(second, (), 0, jnp.maximum(length - 1, 1))
    b = jnp.where(length > 1, b + (b >= a), a)
    to_the_front = jnp.where(a == 0, b, jnp.where(b == 0, a, 0))
    swaps = jax.random.uniform(whether) < exploration
    return listed[jnp.where(swaps, to_the_front, 0)]


def _met(
    log: ClickLog, peer: Int[Array, ""], alive: Bool[Array, " n"], key: Key[Array, ""]
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    mask = log.aware[peer] & alive & (jnp.arange(len(alive)) != peer)
    return anyone(mask, key), jnp.any(mask)


def _pulled(
    log: ClickLog, peer: Int[Array, ""], alive: Bool[Array, " n"], key: Key[Array, ""]
) -> ClickLog:
    other, some = _met(log, peer, alive, key)
    log = told(log, other, peer, some)
    return log._replace(aware=log.aware.at[other, peer].max(some))


def _pushed(
    log: ClickLog,
    peer: Int[Array, ""],
    alive: Bool[Array, " n"],
    twice: Bool[Array, ""],
    key: Key[Array, ""],
) -> ClickLog:
    first, second = jax.random.split(key)
    other, some = _met(log, peer, alive, first)
    log = told(log, peer, other, some)
    rest = alive & (jnp.arange(len(alive)) != other)
    another, more = _met(log, peer, rest, second)
    return told(log, peer, another, more & twice)
