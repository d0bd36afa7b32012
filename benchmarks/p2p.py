"""Peers: Kademlia's lookups as one program, gossip of replicas, and rounds of block exchange."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from benchmarks import alone, peers
from benchmarks.measure import Row, alternately, milliseconds
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
    """Everybody looks for a random key: the 20 closest peers, 3 requests at a time.

    Beside the package stands `alone.answered`: as many requests as these lookups make in the mean.
    """
    rng = np.random.default_rng(0)
    table = p2p.routing(p2p.drawn_ids(count, 0), seed=0)
    sources = np.arange(count, dtype=np.int32)
    keys = rng.integers(0, 1 << 32, count, dtype=np.uint32)

    def work(table: p2p.Routing, sources: Any, keys: Any) -> p2p.Lookups:
        # As the package: the source is among those that may be found.
        return p2p.iterative_lookup(table, sources, keys, source_counts=True, at_once=64)

    compiled = jax.jit(work).lower(table, sources, keys).compile()
    requests = int(compiled(table, sources, keys).messages.mean())
    asked = jnp.asarray(rng.integers(0, count, (requests, count)), jnp.int32)
    known = jnp.asarray(table.ids)[table.contacts]
    far = jnp.full((count, 20), 2**32 - 1, jnp.uint32)
    answers = jax.jit(alone.answered)
    took, alone_ms = (
        total / count
        for total in alternately(
            lambda: compiled(table, sources, keys),
            lambda: answers(far, known, keys, asked),
            repeats=2 if quick else 5,
        )
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
    least = {"peer": f"its {requests} answers of 20 ids read alone", "ms": alone_ms}
    return row.beside(theirs, least)


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
    """A round of push-pull gossip of a counter, and one of a swarm of 64 that fetches 64 blocks.

    The peers are `alone.joined` and `alone.fetched`.
    """
    measured, most = [], 8
    gossip, swarm = p2p.gossiped(p2p.g_counter(count)), p2p.swarm()
    have = np.zeros((64, 64), bool)
    have[0] = True
    key = jax.random.key(0)
    own, called = jnp.eye(count, dtype=jnp.int32), np.random.default_rng(0).permutation(count)
    given = own, jnp.asarray(called), jnp.asarray(np.argsort(called))
    joins, fetches = (alone.repeated(step, most) for step in (alone.joined, alone.fetched))
    held = jnp.zeros((64, 2), jnp.uint32).at[0].set(2**32 - 1)
    for name, algorithm, source, state, peer, least in (
        (
            f"a round of push-pull gossip, {count:,} peers, a counter of as many entries",
            gossip,
            dx.Population(count),
            gossip.init(key, own),
            "its joins alone",
            lambda: joins(*given),
        ),
        (
            "a round of a swarm, 64 peers, 64 blocks, coordinated requests",
            swarm,
            dx.Population(64),
            swarm.init(key, have),
            "who takes what, block by block, alone",
            lambda: fetches(held),
        ),
    ):

        def work(
            state: Any, source: dx.Population, algorithm: dx.Algorithm = algorithm
        ) -> tuple[Any, Any]:
            return dx.rollout(algorithm, state, source, key, most)

        compiled = jax.jit(work).lower(state, source).compile()
        took, alone_ms = (
            total / most
            for total in alternately(
                lambda: compiled(state, source),  # noqa: B023
                least,
                repeats=2 if quick else 5,
            )
        )
        measured.append(Row(name, took, peer, alone_ms))
    return measured
