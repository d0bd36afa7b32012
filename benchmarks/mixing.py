"""Gossip over sparse graphs of thousands of nodes, beside a copy of all models."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

import dflax as dx
from benchmarks.measure import Row, alternately
from dflax import gossip, topology

# Name, mixer and numbers in a model.
WORK: dict[str, tuple[Callable[[], dx.gossip.Mixer], int]] = {
    "ring, n = 10k, d = 1k": (lambda: dx.gossip.ring(10_000), 1_000),
    "8 random neighbours, n = 10k, d = 1k": (
        lambda: dx.gossip.mixer(topology.random_regular(10_000, 8)),
        1_000,
    ),
    "one-peer exponential, n = 1,024, d = 10k": (
        lambda: dx.gossip.one_peer_exponential(1_024),
        10_000,
    ),
    "ring, n = 100k, d = 1k": (lambda: dx.gossip.ring(100_000), 1_000),
}


def rows(quick: bool) -> list[Row]:
    """One mixing and a copy taking turns, each as a call of its own and into memory already there."""
    found = []
    for name, (make, width) in WORK.items():
        found += pair(f"mixing, {name}", make(), width, repeats=3 if quick else 12)
    return [*found, suspicious(repeats=3 if quick else 12)]


def suspicious(repeats: int, nodes: int = 100, degree: int = 6, width: int = 8_000) -> Row:
    """SybilWall with full memories of 32 records, beside plain gossip on the same graph."""
    graph = topology.random_regular(nodes, degree)
    models = jax.random.normal(jax.random.key(0), (nodes, width))
    calls = []
    for mixer in (gossip.by_rule(graph, gossip.sybilwall(32)), gossip.mixer(graph)):
        apply, state = jax.jit(mixer.apply), mixer.init(models)
        for t in range(10):
            mixing = gossip.Mixing(jax.random.key(t), jnp.int32(t))
            _, state, _ = apply(models, state, mixing)
        calls.append(functools.partial(apply, models, state, mixing))
    wall, plain = alternately(*calls, repeats=repeats)
    name = f"SybilWall, n = {nodes}, {degree} neighbours, 32 records, d = {width // 1000}k"
    return Row(name, wall, peer="plain gossip", peer_ms=plain)


def pair(name: str, mixer: dx.gossip.Mixer, width: int, repeats: int) -> list[Row]:
    """Least times of a mixing whose result gets fresh memory, and of one that writes into old memory.

    The first is what a call costs by itself, most of it pages that are touched for the first time;
    the second is what a step inside a longer program costs.
    """
    models = jax.random.normal(jax.random.key(0), (mixer.clients, width))
    state, mixing = mixer.init(models), dx.gossip.Mixing(jax.random.key(1), jnp.int32(3))

    def mix(models: jax.Array, target: jax.Array | None) -> jax.Array:
        return mixer.apply(models, state, mixing)[0]

    def copy(models: jax.Array, target: jax.Array | None) -> jax.Array:
        return models + 0.5

    fresh = [functools.partial(jax.jit(work), models, None) for work in (mix, copy)]
    target = jnp.zeros_like(models)

    def into_target(work: Callable[..., jax.Array]) -> Callable[[], jax.Array]:
        compiled = jax.jit(work, donate_argnums=1, keep_unused=True)

        def call() -> jax.Array:
            nonlocal target
            target = compiled(models, target)
            return target

        return call

    alone, copied, inside, moved = alternately(
        *fresh, into_target(mix), into_target(copy), repeats=repeats
    )
    return [
        Row(name, alone, limit_ms=copied),
        Row(f"{name}, into old memory", inside, limit_ms=moved),
    ]
