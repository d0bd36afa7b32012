"""A peer-to-peer search: items that carry terms, runs of G-Rank, and its attacks."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import p2p


@dataclasses.dataclass(frozen=True)
class World:
    """Sizes of a search.

    Attributes:
      peers: N, benign.
      terms: Q.
      items: M; each carries `tags` terms.
      tags: terms of an item.
      top: K, terms of a peer that count as frequent.
      ticks: T; attackers join at T / 4 and attack at T / 2.
      every: ticks between measurements; divides T / 4.
    """

    peers: int = 20
    terms: int = 8
    items: int = 48
    tags: int = 3
    top: int = 5
    ticks: int = 1000
    every: int = 125


@dataclasses.dataclass(frozen=True)
class Setup:
    """One run: how peers rank and gossip, and who attacks.

    Attributes:
      rule: "F=0", "F=1", "popularity", "own clicks" or "random order".
      gossip: "pull", "push" or "none".
      attack: "", "targeted", "inflation" or "epic".
    """

    rule: str
    gossip: str = "pull"
    attack: str = ""


ISOLATION = {"F=0": 0.0, "F=1": 1.0}


def catalogue(world: World, seed: int) -> np.ndarray:
    """`[M, Q]` which item carries which terms, each term somewhere."""
    rng = np.random.default_rng(seed)
    while True:
        tags = np.zeros((world.items, world.terms), bool)
        for item in range(world.items):
            tags[item, rng.choice(world.terms, world.tags, replace=False)] = True
        if tags.any(0).all():
            return tags


def scorer(world: World, rule: str) -> Any:
    """How the peers of a setup rank."""
    if rule in ISOLATION:
        return p2p.g_rank_score(ISOLATION[rule], top=world.top)
    others = {
        "popularity": p2p.popularity_score,
        "own clicks": p2p.local_score,
        "random order": p2p.random_score,
    }
    return others[rule]()


def attackers(world: World, attack: str) -> tuple[int, int]:
    """How many there are, and the spam of each."""
    some = max(world.peers // 10, 1)
    return {
        "": (0, 0),
        "targeted": (some, 100),
        "inflation": (some, 1000),
        "epic": (3 * world.peers // 2, 100),
    }[attack]


def curves(world: World, setup: Setup, seeds: int, seed: int) -> dict[str, np.ndarray]:
    """`[seeds, measurements]` of `rank_distance` over the ticks, the beginning first."""
    tags = jnp.stack([catalogue(world, seed + place) for place in range(seeds)])
    keys = jax.vmap(jax.random.key)(seed + jnp.arange(seeds))
    return jax.tree.map(np.asarray, _program(world, setup)(keys, tags))


@functools.cache
def _program(world: World, setup: Setup) -> Any:
    """All seeds of a setup as one program."""
    many, spam = attackers(world, setup.attack)
    rank = scorer(world, setup.rule)
    algorithm = p2p.g_rank(
        rank,
        peers=world.peers,
        attackers=many,
        capacity=world.peers * world.terms + world.ticks + many * spam,
        gossip=setup.gossip,
    )
    population = dx.Population(world.peers)

    def one(key: Any, tags: Any) -> dict[str, Any]:
        starting, joining, attacking, running = jax.random.split(key, 4)
        state = algorithm.init(starting, tags)
        begun = p2p.rank_distance(state, benign=world.peers)

        quarter = world.ticks // world.every // 4

        def join(state: Any) -> Any:
            return p2p.joined(state, joining, attackers=many)

        def attack(state: Any) -> Any:
            return p2p.spammed(
                state,
                rank,
                attacking,
                attackers=many,
                queries=spam,
                attack="inflation" if setup.attack == "inflation" else "targeted",
            )

        def measured(state: Any, index: Any) -> tuple[Any, Any]:
            if many:
                state = jax.lax.cond(index == quarter, join, lambda state: state, state)
                state = jax.lax.cond(index == 2 * quarter, attack, lambda state: state, state)
            state, _ = dx.rollout(
                algorithm, state, population, running, world.every, index * world.every
            )
            return state, p2p.rank_distance(state, benign=world.peers)

        parts = jax.lax.scan(measured, state, jnp.arange(4 * quarter))[1]
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begun, parts)

    return jax.jit(jax.vmap(one))
