"""Lookups: from contact to closer contact, or asking the closest ones for the closest they know."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from dflax import validation
from dflax.p2p.kademlia.routing import BITS, Routing, _ids

MOST = 0xFFFFFFFF


class Hops(NamedTuple):
    """Greedy lookups.

    Attributes:
      found: `[q]` int32, the peer at which each ended.
      hops: `[q]` int32.
      done: `[q]` whether it ended because nobody is closer.
    """

    found: Int[Array, " q"]
    hops: Int[Array, " q"]
    done: Bool[Array, " q"]


class Lookups(NamedTuple):
    """Iterative lookups.

    Attributes:
      found: `[q, k]` int32, the closest peers found, the closest first; -1 where there are fewer.
      rounds: `[q]` int32.
      messages: `[q]` int32, requests.
      done: `[q]` whether all of the k closest known were asked.
    """

    found: Int[Array, "q k"]
    rounds: Int[Array, " q"]
    messages: Int[Array, " q"]
    done: Bool[Array, " q"]


def greedy_lookup(
    routing: Routing, sources: Int[Array, " q"], keys: UInt32[Array, " q"], *, most: int = BITS
) -> Hops:
    """Every lookup hops to the contact closest to its key, as long as that is strictly closer.

    A hop fixes another bit of the key at least, so that there are at most 32; about 0.5 log2 n with
    one contact a bucket.

    Args:
      routing: from `routing`.
      sources: `[q]` peers that look.
      keys: `[q]` uint32, what they look for.
      most: hops at most, >= 1; the scan has this length.

    Returns:
      `Hops`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    sources, keys = _queries(routing, sources, keys)
    validation.integer("most", most, low=1)
    ids, contacts, _ = routing

    def one(source: Int[Array, ""], key: UInt32[Array, ""]) -> Hops:
        def hop(carry: tuple, _: None) -> tuple[tuple, None]:
            at, hops, _ = carry
            peers = contacts[at]
            # A free place is the peer itself, which is not closer.
            away = jnp.where(peers >= 0, ids[peers], ids[at]) ^ key
            nearest = jnp.argmin(away)
            closer = away[nearest] < ids[at] ^ key
            return (jnp.where(closer, peers[nearest], at), hops + closer, ~closer), None

        start = (source, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        return Hops(*jax.lax.scan(hop, start, None, length=most)[0])

    return jax.vmap(one)(sources, keys)


def iterative_lookup(
    routing: Routing,
    sources: Int[Array, " q"],
    keys: UInt32[Array, " q"],
    *,
    count: int = 20,
    parallelism: int = 3,
    rounds: int = 12,
    source_counts: bool = False,
    at_once: int | None = None,
) -> Lookups:
    """Kademlia's lookup of the k peers closest to a key.

    The shortlist begins as the k closest contacts of the source. In a round the c closest of it that
    were not asked yet are asked, each answers with the k closest that it knows, and the k closest of
    all stay. It ends when all of them have been asked.

    Args:
      routing: from `routing`.
      sources: `[q]` peers that look.
      keys: `[q]` uint32, what they look for.
      count: k >= 1.
      parallelism: c >= 1, requests of a round, which is one message each.
      rounds: at most, >= 1; the scan has this length.
      source_counts: whether the source is a candidate itself, one that was asked already; else it is
        none.
      at_once: lookups that one device runs side by side; None for all. Fewer fit a CPU's caches.

    Returns:
      `Lookups`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Maymounkov and Mazieres, Kademlia, IPTPS 2002.
    """
    sources, keys = _queries(routing, sources, keys)
    validation.integer("count", count, low=1)
    validation.integer("parallelism", parallelism, low=1)
    validation.integer("rounds", rounds, low=1)
    validation.flag("source_counts", source_counts)
    validation.at_once(at_once)
    ids, contacts, order = routing
    in_order = ids[order]
    # Ids of contacts; in free places the peer's own, which whoever asks it knows.
    known = jnp.where(contacts >= 0, ids[contacts], ids[:, None])
    ask = min(parallelism, count)

    def one(query: tuple[Int[Array, ""], UInt32[Array, ""]]) -> Lookups:
        source, key = query
        own = ids[source] ^ key

        def without_source(away: UInt32[Array, " M"], instead: UInt32[Array, ""]) -> Array:
            return away if source_counts else jnp.where(away == own, instead, away)

        first = known[source] ^ key
        nearest = jnp.min(jnp.where(first == own, jnp.uint32(MOST), first))
        if source_counts:
            first = jnp.append(first, own)
        short, valid = _closest(without_source(first, nearest), count)
        asked = valid & (short == own)

        def round_(carry: tuple, _: None) -> tuple[tuple, None]:
            short, valid, asked, rounds, messages = carry
            fresh = valid & ~asked
            asking = fresh & (jnp.cumsum(fresh) <= ask)
            places = jnp.argsort(~asking, stable=True)[:ask]
            peers = order[jnp.searchsorted(in_order, short[places] ^ key)]
            told = jnp.where(asking[places][:, None], known[peers] ^ key, short[0])
            away = jnp.concatenate([jnp.where(valid, short, short[0]), told.reshape(-1)])
            best, some = _closest(without_source(away, short[0]), count)
            before = asked | asking
            after = jnp.any((best[:, None] == short) & before & valid, axis=1)
            busy = jnp.any(asking)
            return (best, some, after & some, rounds + busy, messages + jnp.sum(asking)), None

        zero = jnp.zeros((), jnp.int32)
        start = (short, valid, asked, zero, zero)
        (short, valid, asked, done, messages), _ = jax.lax.scan(round_, start, None, length=rounds)
        found = order[jnp.searchsorted(in_order, short ^ key)]
        return Lookups(jnp.where(valid, found, -1), done, messages, ~jnp.any(valid & ~asked))

    return jax.lax.map(one, (sources, keys), batch_size=at_once or len(sources))


def _closest(
    away: UInt32[Array, " M"], count: int
) -> tuple[UInt32[Array, " k"], Bool[Array, " k"]]:
    """The k least distances, each once, and which of them there are.

    Distances to a key are as distinct as ids, so that equal ones are one peer.
    """
    first, last = jnp.min(away), jnp.max(away)

    def following(before: UInt32[Array, ""], _: None) -> tuple[Array, tuple[Array, Array]]:
        after = jnp.min(jnp.where(away > before, away, jnp.uint32(MOST)))
        some = before < last
        return jnp.where(some, after, before), (after, some)

    _, (rest, some) = jax.lax.scan(following, first, None, length=count - 1)
    return jnp.append(first, rest), jnp.append(True, some)


def _queries(
    routing: Routing, sources: Int[Array, " q"], keys: UInt32[Array, " q"]
) -> tuple[Int[Array, " q"], UInt32[Array, " q"]]:
    validation.instance("routing", routing, Routing, "dflax.p2p.routing makes one.")
    peers = routing.ids.shape[0]
    found = validation.array(
        "sources", sources, kind="integer", shape=("q",), low=0, high=peers - 1
    )
    wanted = _ids("keys", keys)
    if wanted.shape != found.shape:
        raise ValueError(
            f"keys must be of shape {found.shape}, one for each source, got {wanted.shape}."
        )
    return jnp.asarray(found, jnp.int32), wanted
