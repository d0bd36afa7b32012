"""What a round costs by Bristle and SybilWall among peers, and by the flag aggregator at a server."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks import rounds
from benchmarks.measure import Row
from dflax import aggregation, gossip, topology

CLIENTS, DEGREE, STEPS, BATCH, OWNED = 16, 4, 1, 20, 60
# Of Bristle: features that are computed once, classes, peers, classes of a peer and examples of each.
FEATURES, CLASSES, PEERS, FAMILIAR, PER_CLASS = 800, 10, 15, 4, 10


def rows(quick: bool) -> list[Row]:
    """Each method beside the plain mean of the same messages, in turns."""
    repeats = 2 if quick else 5
    return [*_heads(repeats), *_neighbours(repeats), *_server(repeats)]


def _heads(repeats: int) -> list[Row]:
    """15 peers that all hear each other; only a last layer is trained, in four steps of 5 examples."""
    source, tests = _features()
    everyone, order = topology.complete(PEERS), dx.decentralized.Order.COMBINE_THEN_ADAPT
    loss, descent = dx.losses.classification(_head), optax.sgd(0.05)
    known = {
        "DFedAvg": lambda: dx.decentralized.dfedavg(
            loss, descent, gossip.mixer(everyone), order=order
        ),
        "Bristle": lambda: dx.decentralized.bristle(loss, descent, everyone, _head, tests),
    }
    start = {"kernel": jnp.zeros((FEATURES, CLASSES))}
    what = f"round, a head of {FEATURES} x {CLASSES}, {PEERS} clients on the complete graph"
    return rounds.beside_first(
        known, lambda algorithm: algorithm.init(jax.random.key(0), start), source, repeats, what
    )


def _neighbours(repeats: int) -> list[Row]:
    """A graph of degree 4, whole CNNs."""
    source, params, loss = rounds.noise(CLIENTS, OWNED, STEPS, BATCH)
    graph, descent = topology.random_regular(CLIENTS, DEGREE, seed=0), optax.sgd(0.05)

    def by(mixer: gossip.Mixer) -> dx.Algorithm:
        return dx.decentralized.dfedavg(loss, descent, mixer)

    known = {
        "DFedAvg": lambda: by(gossip.mixer(graph)),
        "local FoolsGold": lambda: by(gossip.by_rule(graph, gossip.local_foolsgold())),
        "SybilWall": lambda: by(gossip.by_rule(graph, gossip.sybilwall(CLIENTS - 1))),
    }
    what = f"round, CNN, {CLIENTS} clients of {DEGREE} neighbours"
    return rounds.beside_first(
        known, lambda algorithm: algorithm.init(jax.random.key(0), params), source, repeats, what
    )


def _server(repeats: int) -> list[Row]:
    """All clients report to a server."""
    source, params, loss = rounds.noise(CLIENTS, OWNED, STEPS, BATCH)

    def by(rule: aggregation.Aggregator) -> dx.Algorithm:
        return dx.server.fedavg(loss, optax.sgd(0.05), aggregator=rule)

    known = {
        "FedAvg": lambda: by(aggregation.mean()),
        "mean of directions": lambda: by(aggregation.mean_of_normalised()),
        "flag": lambda: by(aggregation.flag()),
    }
    return rounds.beside_first(
        known,
        lambda algorithm: algorithm.init(jax.random.key(0), params),
        source,
        repeats,
        f"round, CNN, {CLIENTS} clients at a server",
    )


def _head(params: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    return features @ params["kernel"]


def _features() -> tuple[dx.Federation, Any]:
    """Noise as features; peer i owns classes i to i + 3, for training and as many for its tests."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), 100)
    inputs = generator.normal(size=(len(labels), FEATURES)).astype(np.float32)
    data = dx.data.Dataset(jnp.asarray(inputs), jnp.asarray(labels, jnp.int32), classes=CLASSES)
    train, test = [], []
    for peer in range(PEERS):
        owned = [
            generator.choice(100, 2 * PER_CLASS, replace=False) + 100 * (c % CLASSES)
            for c in range(peer, peer + FAMILIAR)
        ]
        train.append(np.concatenate([one[:PER_CLASS] for one in owned]))
        test.append(np.concatenate([one[PER_CLASS:] for one in owned]))
    source = dx.Federation(
        data, dx.data.from_indices(train), local_steps=4, batch_size=5, replacement=True
    )
    return source, gossip.class_tests(data, dx.data.from_indices(test))
