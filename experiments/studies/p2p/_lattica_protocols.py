"""Runs of Lattica's protocols: links, lookups, gossip of replicas, swarms; arrays of what came out."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import p2p

# Shares of public, full-cone, address-restricted, port-restricted and symmetric NATs.
MIX = np.array([0.10, 0.25, 0.15, 0.35, 0.15])
EXPECTED = 1 - (2 * 0.35 * 0.15 + 0.15**2)
QUERIES = 300


def keys_of(seeds: Sequence[int]) -> jax.Array:
    """One key for each seed."""
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def reached(seeds: Sequence[int], peers: int, rates: Sequence[float]) -> dict[str, np.ndarray]:
    """Direct shares and their z scores against the closed form of the drawn types, `[seeds, rates]`."""

    def one(key: Any, rate: Any, reversal: bool) -> dict[str, Any]:
        nat_key, drawing = jax.random.split(key)
        nat = p2p.drawn_nats(nat_key, peers, MIX)
        apart = jnp.ones((peers, peers)) - jnp.eye(peers)
        network = p2p.connected(
            drawing, nat, apart, jnp.ones((peers, 1)), success=rate, reversal=reversal
        )
        joinable = jnp.asarray(p2p.textbook_nats())[nat[:, None], nat]
        chance = joinable * (1 - (1 - rate) ** 3)
        if reversal:
            chance = jnp.where((nat[:, None] == 0) | (nat == 0), 1.0, chance)
        pairs = jnp.triu(jnp.ones((peers, peers)), 1)
        count = pairs.sum()
        deviation = jnp.sqrt(jnp.sum(pairs * chance * (1 - chance)))
        direct = jnp.sum(pairs * network.direct)
        first = jnp.sum(pairs * network.direct * (network.attempts == 1))
        return {
            "share": direct / count,
            "possible": jnp.sum(pairs * joinable) / count,
            "z": (direct - jnp.sum(pairs * chance)) / jnp.maximum(deviation, 1e-6),
            "reachable": jnp.sum(pairs * network.link) / count,
            "first": first / jnp.sum(pairs * network.direct * (network.attempts > 0)),
        }

    found = {}
    for reversal in (False, True):
        over = jax.vmap(lambda key, rate, how=reversal: one(key, rate, how), in_axes=(None, 0))
        run = jax.jit(
            lambda keys, over=over: jax.lax.map(lambda k: over(k, jnp.array(rates)), keys)
        )
        for name, value in run(keys_of(seeds)).items():
            found[name + (", reversal" if reversal else "")] = np.asarray(value)
    return found


def lowered(seeds: Sequence[int], peers: int, factor: float) -> dict[str, np.ndarray]:
    """Direct share and share of first tries where NATs can be joined `factor` times as often."""

    @jax.jit
    def run(key: Any) -> dict[str, Any]:
        nat_key, drawing = jax.random.split(key)
        nat = p2p.drawn_nats(nat_key, peers, MIX)
        network = p2p.connected(
            drawing,
            nat,
            jnp.ones((peers, peers)),
            possible=factor * p2p.textbook_nats(),
            reversal=False,
        )
        direct = jnp.sum(network.direct)
        first = jnp.sum(network.direct & (network.attempts == 1))
        return {"share": direct / (peers * (peers - 1)), "first": first / direct}

    found = [run(jax.random.key(seed)) for seed in seeds]
    return {name: np.array([float(one[name]) for one in found]) for name in found[0]}


def looked_up(seeds: Sequence[int], peers: int) -> dict[str, np.ndarray]:
    """Hops, messages, rounds and exactness of 300 lookups a seed, `[seeds]`."""
    greedy, full = jax.jit(p2p.greedy_lookup), jax.jit(_in_chunks)
    found: dict[str, list[float]] = {}

    def note(name: str, value: Any) -> None:
        found.setdefault(name, []).append(float(np.mean(value)))

    tables = {k: _tables(seeds, peers, k) for k in (1, 20)}
    for number, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, peers])
        ids = np.asarray(tables[1][number].ids)
        sources = rng.integers(0, peers, QUERIES).astype(np.int32)
        targets = (sources + rng.integers(1, peers, QUERIES)) % peers
        words = rng.integers(0, 1 << 32, QUERIES, dtype=np.uint32)
        for k, several in tables.items():
            table = several[number]
            note(f"hops, k = {k}", greedy(table, sources, words).hops)
            note(f"hops to a peer, k = {k}", greedy(table, sources, ids[targets]).hops)
        lookup = full(tables[20][number], sources, words)
        note("messages", lookup.messages)
        note("rounds", lookup.rounds)
        order = np.argsort(ids ^ words[:, None], axis=1)[:, :21]
        rows = [row[row != own][:20] for row, own in zip(order, sources, strict=True)]
        note("exact", (np.asarray(lookup.found) == np.stack(rows)).all(1) & np.asarray(lookup.done))
    return {name: np.array(values) for name, values in found.items()}


def _tables(seeds: Sequence[int], peers: int, bucket_size: int) -> list[p2p.Routing]:
    """A table for each seed, all of one width, so that one program serves them all."""
    made = [
        p2p.routing(p2p.drawn_ids(peers, seed), bucket_size=bucket_size, seed=seed)
        for seed in seeds
    ]
    width = max(one.contacts.shape[1] for one in made)
    return [
        one._replace(
            contacts=jnp.pad(
                one.contacts, ((0, 0), (0, width - one.contacts.shape[1])), constant_values=-1
            )
        )
        for one in made
    ]


def _in_chunks(table: p2p.Routing, sources: Any, keys: Any) -> p2p.Lookups:
    return p2p.iterative_lookup(table, sources, keys, at_once=100)


def gossip_rounds(
    seeds: Sequence[int], peers: int, schedule: str = "push-pull"
) -> dict[str, np.ndarray]:
    """Rounds until all counters are equal, and entries sent until then, `[seeds]`."""
    algorithm = p2p.gossiped(p2p.g_counter(peers), schedule=schedule)
    most = 14 if schedule in ("push-pull", "one by one") else 30

    def run(key: Any) -> dict[str, Any]:
        state = algorithm.init(key, jnp.eye(peers, dtype=jnp.int32))
        _, metrics = dx.rollout(algorithm, state, dx.Population(peers), key, most)
        # The round before which they still differed.
        busy = jnp.concatenate([jnp.ones((1,), bool), metrics["replicas"][:-1] > 1])
        sent = {
            name: jnp.sum(metrics[name] * busy) for name in ("by_state", "by_digest", "by_entry")
        }
        return sent | {"rounds": jnp.sum(busy), "replicas": metrics["replicas"][-1]}

    found = jax.jit(lambda keys: jax.lax.map(run, keys))(keys_of(seeds))
    return {name: np.asarray(value) for name, value in found.items()}


def parted(seeds: Sequence[int], peers: int = 16) -> dict[str, np.ndarray]:
    """Sets and an index written on two islands that meet again; all `[seeds]`.

    Every peer adds its own element. After 8 rounds on two islands peer 0 adds the last element once
    more, and everybody is linked for 8 rounds.
    """
    crdts = {
        "set": p2p.stamped(p2p.or_set(peers, peers), peers),
        "index": p2p.subkey_index(peers),
    }
    who = jnp.arange(peers)
    islands = jnp.asarray(np.kron(np.eye(2, dtype=bool), np.ones((peers // 2, peers // 2), bool)))
    source = dx.Population(peers)
    found: dict[str, np.ndarray] = {}
    for name, crdt in crdts.items():
        algorithm = p2p.gossiped(crdt)
        clock = () if name == "set" else (1,)

        def run(key: Any, crdt: Any = crdt, algorithm: Any = algorithm, clock: Any = clock) -> Any:
            first = jax.vmap(lambda i: crdt.write(crdt.bottom(), i, i, True, *clock))(who)
            state = algorithm.init(key, first, islands)
            state, apart = dx.rollout(algorithm, state, source, key, 8)
            # Written on one island, while the other knows nothing of it.
            own = jax.tree.map(lambda leaf: leaf[0], state.clients)
            written = crdt.write(own, 0, peers - 1, True, *clock)
            clients = jax.tree.map(lambda leaf, row: leaf.at[0].set(row), state.clients, written)
            state = state._replace(
                clients=clients, server=state.server._replace(link=jnp.ones_like(islands))
            )
            state, joined = dx.rollout(algorithm, state, source, key, 8, 8)
            members = jax.vmap(crdt.value)(state.clients)
            sums = {
                way: jnp.sum(jnp.concatenate([apart[way], joined[way]]))
                for way in ("by_state", "by_digest", "by_entry", "by_version")
                if way in apart
            }
            return sums | {
                "apart": apart["replicas"][-1],
                "together": joined["replicas"][-1],
                "members": jnp.sum(members[0]),
            }

        result = jax.jit(lambda keys, run=run: jax.lax.map(run, keys))(keys_of(seeds))
        found |= {f"{name}: {key}": np.asarray(value) for key, value in result.items()}
    return found


def swarms(seeds: Sequence[int], peers: int, blocks: int = 16) -> dict[str, np.ndarray]:
    """Rounds until everybody has all blocks, `[seeds]`: coordinated, blind, over a star."""
    have = np.zeros((peers, blocks), bool)
    have[0] = True
    star = np.zeros((peers, peers), bool)
    star[0] = star[:, 0] = True
    ways: dict[str, tuple[str, np.ndarray | None, int]] = {
        "coordinated": ("coordinated", None, 30),
        "blind": ("blind", None, 80),
        "star": ("blind", star, blocks * (peers - 1) + 4),
    }
    found: dict[str, np.ndarray] = {}
    for name, (requests, link, most) in ways.items():
        algorithm = p2p.swarm(requests=requests)

        def run(key: Any, algorithm: Any = algorithm, link: Any = link, most: int = most) -> Any:
            state = algorithm.init(key, have, link)
            _, metrics = dx.rollout(algorithm, state, dx.Population(peers), key, most)
            return 1 + jnp.sum(metrics["complete"] < peers)

        own = seeds[:3] if name == "star" else seeds
        found[name] = np.asarray(jax.jit(jax.vmap(run))(keys_of(own)))
    return found


def spoilt(seeds: Sequence[int], peers: int = 16, blocks: int = 16) -> dict[str, np.ndarray]:
    """A quarter of the peers have everything and corrupt it: blocks dropped and rounds, `[seeds]`."""
    liars = np.arange(peers) >= 3 * peers // 4
    have = np.zeros((peers, blocks), bool)
    have[0] = have[liars] = True
    found = {}
    for name, scores in (("by scores", p2p.peer_scores()), ("at random", None)):
        algorithm = p2p.swarm(scores=scores)

        def run(key: Any, algorithm: Any = algorithm) -> Any:
            state = algorithm.init(key, have, None, liars.astype(np.float32))
            _, metrics = dx.rollout(algorithm, state, dx.Population(peers), key, 120)
            return 1 + jnp.sum(metrics["complete"] < peers), jnp.sum(metrics["dropped"])

        rounds, dropped = jax.jit(jax.vmap(run))(keys_of(seeds))
        found[f"rounds, {name}"] = np.asarray(rounds)
        found[f"dropped, {name}"] = np.asarray(dropped)
    return found
