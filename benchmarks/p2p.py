"""Peers: Kademlia's lookups as one program, gossip of replicas, and rounds of block exchange."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from benchmarks import peers
from benchmarks.measure import Row, milliseconds
from dflax import p2p

# So many of the lookups are made by the peer.
THEIRS = 300


def rows(quick: bool) -> list[Row]:
    """All of them."""
    return [
        *lookups(1024 if quick else 4096, quick),
        *rounds(256 if quick else 1024, quick),
        *walks(100_000 if quick else 1_000_000, quick),
    ]


def lookups(count: int, quick: bool) -> list[Row]:
    """Everybody looks for a random key: the 20 closest peers, 3 requests at a time."""
    rng = np.random.default_rng(0)
    table = p2p.routing(p2p.drawn_ids(count, 0), seed=0)
    sources = np.arange(count, dtype=np.int32)
    keys = rng.integers(0, 1 << 32, count, dtype=np.uint32)

    def work(table: p2p.Routing, sources: Any, keys: Any) -> p2p.Lookups:
        # As the package: the source is among those that may be found.
        return p2p.iterative_lookup(table, sources, keys, source_counts=True, at_once=64)

    compiled = jax.jit(work).lower(table, sources, keys).compile()
    took = milliseconds(
        lambda: compiled(table, sources, keys), repeats=2 if quick else 5, units=count
    )
    row = Row(
        f"a lookup of the 20 closest, {count:,} at once among as many peers",
        took,
        peak_bytes=getattr(compiled.memory_analysis(), "peak_memory_in_bytes", None),
    )
    some = slice(0, THEIRS)
    theirs = peers.run(
        "kademlia",
        "lookups_kademlia",
        ids=np.asarray(table.ids).tolist(),
        contacts=np.asarray(table.contacts).tolist(),
        sources=sources[some].tolist(),
        keys=keys[some].tolist(),
        count=20,
    )
    if theirs is not None:
        found = np.asarray(compiled(table, sources, keys).found)[some]
        if found.tolist() != theirs["found"]:
            raise AssertionError("lookups must find what those of the kademlia package find.")
    return row.beside(theirs)


def walks(count: int, quick: bool) -> list[Row]:
    """MeritRank's walks from one of 1,000 users who trust eight others each."""
    rng = np.random.default_rng(0)
    users, stop = 1000, 0.15
    friends = np.stack([rng.permutation(users)[:8] for _ in range(users)]).astype(np.int32)
    # Who is drawn as a friend of itself trusts the next instead.
    itself = friends == np.arange(users)[:, None]
    friends = np.where(itself, (friends + 1) % users, friends)
    trusting = rng.random((users, 8)).astype(np.float32)

    def work(friends: Any, trusting: Any, key: Any) -> Any:
        found = p2p.trust_walks(
            friends, trusting, jnp.int32(0), key, walks=count, length=64, stop=stop
        )
        # Each walk counts once for every user that it comes by.
        order = jnp.sort(found.visited, axis=1)
        first = (order >= 0) & (jnp.diff(order, axis=1, prepend=-2) != 0)
        place = jnp.where(first, order, users)
        return jnp.zeros(users).at[place.reshape(-1)].add(1.0, mode="drop") / count

    def walked(friends: Any, trusting: Any, key: Any) -> Any:
        found = p2p.trust_walks(
            friends, trusting, jnp.int32(0), key, walks=count, length=64, stop=stop
        )
        return jnp.sum(found.visited[:, 1] >= 0)

    given = friends, trusting, jax.random.key(0)
    compiled = jax.jit(walked).lower(*given).compile()
    took = milliseconds(lambda: compiled(*given), repeats=2 if quick else 5, units=count)
    row = Row(f"a walk of MeritRank, {count:,} at once", took)
    edges = [
        (source, int(target), float(weight))
        for source in range(users)
        for target, weight in zip(friends[source], trusting[source], strict=True)
    ]
    theirs = peers.run("meritrank", "walks_meritrank", edges=edges, stop=stop, walks=10_000)
    if theirs is not None:
        ours = np.asarray(jax.jit(work)(*given))
        named = {int(node): share for node, share in theirs["shares"].items()}
        off = max(abs(ours[node] - share) for node, share in named.items())
        # Five standard errors of 10,000 walks at a share of a half.
        if off > 0.025:
            raise AssertionError("walks must come by whom those of meritrank-python come by.")
    return row.beside(theirs)


def rounds(count: int, quick: bool) -> list[Row]:
    """A round of push-pull gossip of a counter, and one of a swarm of 64 that fetches 64 blocks."""
    measured, most = [], 8
    gossip, swarm = p2p.gossiped(p2p.g_counter(count)), p2p.swarm()
    have = np.zeros((64, 64), bool)
    have[0] = True
    key = jax.random.key(0)
    for name, algorithm, source, state in (
        (
            f"a round of push-pull gossip, {count:,} peers, a counter of as many entries",
            gossip,
            dx.Population(count),
            gossip.init(key, jnp.eye(count, dtype=jnp.int32)),
        ),
        (
            "a round of a swarm, 64 peers, 64 blocks, coordinated requests",
            swarm,
            dx.Population(64),
            swarm.init(key, have),
        ),
    ):

        def work(
            state: Any, source: dx.Population, algorithm: dx.Algorithm = algorithm
        ) -> tuple[Any, Any]:
            return dx.rollout(algorithm, state, source, key, most)

        compiled = jax.jit(work).lower(state, source).compile()
        took = milliseconds(
            lambda: compiled(state, source),  # noqa: B023
            repeats=2 if quick else 5,
            units=most,
        )
        measured.append(Row(name, took))
    return measured
