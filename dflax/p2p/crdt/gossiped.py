"""Gossip of replicas: joins beside the means of `dflax.gossip`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.p2p.crdt.deltas import Stamped, content, digest, entries_of, entry_digests
from dflax.p2p.crdt.protocol import Crdt, Replica
from dflax.population import Round

SCHEDULES = ("push-pull", "pull", "matching", "one by one")


class Links(NamedTuple):
    """Who can call whom.

    Attributes:
      link: `[n, n]` bools; None for everybody.
    """

    link: Bool[Array, "n n"] | None


def gossiped(crdt: Crdt, *, schedule: str = "push-pull") -> Algorithm:
    """Every peer calls a random other one in every round, and replicas are joined.

    - "push-pull": all exchanges read the states of the round's start, and both sides join. With
      everybody linked, all n replicas are equal after about log2 n + 1 rounds.
    - "pull": the caller alone joins.
    - "matching": disjoint random pairs, both join.
    - "one by one": as push-pull, but each exchange reads what the ones before it left.

    Args:
      crdt: the data type.
      schedule: one of these.

    Returns:
      An `Algorithm` on rounds of a `dflax.Population` of n, of which it takes the key.
      `init(key, replicas, link=None)` gets leaves `[n, E, ...]` and who is linked with whom, `[n, n]`,
      symmetric; who has no link calls nobody. The state is a `FederatedState` with the replicas under
      `clients`; `server.link` may be replaced between rounds, as partitions do. Metrics:
      `replicas` (how many different ones there are), `calls`, and how many entries were sent in all
      `by_state` (all of them), `by_digest` (none where the digests are equal, else all), `by_entry`
      (those whose own digests differ) and, of a `stamped` type, `by_version` (those that the other's
      version lacks). All four lead to the same replicas.

    Raises:
      TypeError, ValueError: naming the argument; from `init` also `replicas` and `link`.
    """
    validation.instance("crdt", crdt, Crdt, "For example dflax.p2p.or_set(slots, writers).")
    validation.choice("schedule", schedule, SCHEDULES)

    def init(
        key: Key[Array, ""], replicas: Replica, link: Bool[Array, "n n"] | None = None
    ) -> FederatedState:
        validation.arrays("replicas", replicas, some=True)
        peers = validation.leading_axis("replicas", replicas, least=2)
        if link is not None:
            found = validation.array("link", link, kind="boolean", shape=(peers, peers))
            if not validation.is_traced(found) and not (found == found.T).all():
                raise ValueError("link must be symmetric, got one that is not. Pass link | link.T.")
            link = jnp.asarray(found)
        replicas = jax.tree.map(jnp.asarray, replicas)
        return FederatedState(jnp.zeros((), jnp.int32), Links(link), replicas)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        replicas, link = state.clients, state.server.link
        peers = jax.tree.leaves(replicas)[0].shape[0]
        both = schedule != "pull"
        partner = _partners(round.key, peers, link, schedule == "matching")
        if schedule == "one by one":
            after, sent = _one_by_one(crdt, replicas, partner)
        else:
            called = _rows(replicas, partner)
            sent = jax.vmap(lambda a, b: _sent(a, b, both))(replicas, called)
            after = jax.vmap(crdt.join)(replicas, called)
            if schedule == "push-pull":
                after = _with_callers(crdt, after, replicas, partner)
        calls = partner != jnp.arange(peers)
        if schedule == "matching":
            calls &= jnp.arange(peers) < partner
        metrics = {name: jnp.sum(jnp.where(calls, each, 0)) for name, each in sent.items()}
        digests = jnp.sort(jax.vmap(digest)(content(after)))
        metrics["replicas"] = 1 + jnp.sum(digests[1:] != digests[:-1])
        metrics["calls"] = jnp.sum(calls)
        return state._replace(round=state.round + 1, clients=after), metrics

    return Algorithm(init, step)


def _rows(replicas: Replica, rows: Int[Array, "..."]) -> Replica:
    return jax.tree.map(lambda leaf: leaf[rows], replicas)


def _partners(
    key: Key[Array, ""], peers: int, link: Bool[Array, "n n"] | None, matching: bool
) -> Int[Array, " n"]:
    """Whom each peer calls; itself for nobody."""
    own = jnp.arange(peers)
    if link is not None:
        link &= own[:, None] != own
    if matching:
        order = jax.random.permutation(key, peers)
        pairs = peers // 2
        first, second = order[: 2 * pairs : 2], order[1 : 2 * pairs : 2]
        partner = own.at[first].set(second).at[second].set(first)
        return partner if link is None else jnp.where(link[own, partner], partner, own)
    if link is None:
        return (own + 1 + jax.random.randint(key, (peers,), 0, peers - 1)) % peers
    drawn = jnp.where(link, jax.random.uniform(key, (peers, peers)), -1.0)
    return jnp.where(jnp.any(link, axis=1), jnp.argmax(drawn, axis=1), own)


def _with_callers(
    crdt: Crdt, after: Replica, before: Replica, partner: Int[Array, " n"]
) -> Replica:
    """Joins the replicas of all who called a peer: a segmented scan over callers, as joins associate."""
    order = jnp.argsort(partner)
    callee = partner[order]
    first = jnp.concatenate([jnp.ones((1,), bool), callee[1:] != callee[:-1]])

    def combined(a: tuple[Array, Replica], b: tuple[Array, Replica]) -> tuple[Array, Replica]:
        joined = jax.vmap(crdt.join)(a[1], b[1])
        return a[0] | b[0], _where(b[0], b[1], joined)

    _, folded = jax.lax.associative_scan(combined, (first, _rows(before, order)))
    own = jnp.arange(partner.shape[0])
    last = jnp.searchsorted(callee, own, side="right") - 1
    some = (last >= 0) & (callee[last] == own)
    joined = jax.vmap(crdt.join)(after, _rows(folded, jnp.maximum(last, 0)))
    return _where(some, joined, after)


def _where(mask: Bool[Array, " n"], yes: Replica, no: Replica) -> Replica:
    def choose(a: Array, b: Array) -> Array:
        return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, yes, no)


def _one_by_one(
    crdt: Crdt, replicas: Replica, partner: Int[Array, " n"]
) -> tuple[Replica, dict[str, Array]]:
    def exchange(replicas: Replica, caller: Int[Array, ""]) -> tuple[Replica, dict[str, Array]]:
        called = partner[caller]
        mine, theirs = _rows(replicas, caller), _rows(replicas, called)
        joined = crdt.join(mine, theirs)
        after = jax.tree.map(
            lambda leaf, row: leaf.at[caller].set(row).at[called].set(row), replicas, joined
        )
        return after, _sent(mine, theirs, True)

    return jax.lax.scan(exchange, replicas, jnp.arange(partner.shape[0]))


def _sent(mine: Replica, theirs: Replica, both: bool) -> dict[str, Array]:
    """Entries that one exchange sends, by what is known of the other."""
    a, b = entry_digests(content(mine)), entry_digests(content(theirs))
    ways, entries = 1 + both, entries_of(content(mine))
    counted: Callable[[Array], Array] = lambda mask: jnp.sum(mask, dtype=jnp.int32)  # noqa: E731
    sent = {
        "by_state": jnp.asarray(ways * entries, jnp.int32),
        "by_digest": ways * entries * jnp.any(a != b).astype(jnp.int32),
        "by_entry": ways * counted(a != b),
    }
    if isinstance(mine, Stamped) and isinstance(theirs, Stamped):
        pulled = jnp.any(theirs.seen > jnp.max(mine.seen, axis=0), axis=1)
        pushed = jnp.any(mine.seen > jnp.max(theirs.seen, axis=0), axis=1)
        sent["by_version"] = counted(pulled) + both * counted(pushed)
    return sent
