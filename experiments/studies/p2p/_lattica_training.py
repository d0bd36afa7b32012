"""Training over simulated links: graphs of networks behind NATs, methods on them, seconds a round."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import decentralized, p2p
from experiments.tasks.gossip import given_matrix
from experiments.tasks.paired import Paired, label_priors

# Nobody is public, and half of the peers are behind carrier-grade NATs.
CLOSED = np.array([0.0, 0.0, 0.0, 0.5, 0.5])
COMPLETE, RELAYED = "complete", "relays and punching"
PUNCHED, DIALLED = "direct only", "direct only, no punching"
GRAPHS = (COMPLETE, RELAYED, PUNCHED, DIALLED)
# A link of a home, of a relay; a model of the size of a small CNN.
UP, DOWN, RELAY, MODEL = 2.5e6, 12.5e6, 12.5e6, 1.7e6


@functools.partial(jax.jit, static_argnames=("peers", "attempts"))
def network(key: Any, peers: int, mix: Any, attempts: int = 3) -> p2p.Network:
    """Peers and three relays on a square, 10 ms and 100 ms a side apart from each other."""
    placing, typing, connecting = jax.random.split(key, 3)
    place = jax.random.uniform(placing, (peers + 3, 2))
    rtt = 0.01 + 0.1 * jnp.linalg.norm(place[:, None] - place, axis=2)
    nat = p2p.drawn_nats(typing, peers, mix)
    own = rtt[:peers, :peers] * (1 - jnp.eye(peers))
    return p2p.connected(connecting, nat, own, rtt[:peers, peers:], attempts=attempts)


def seconds_of_round(found: p2p.Network, peers: int) -> float:
    """How long the slowest link takes to send a model, all at once, relays shared."""
    each = jnp.full(peers, UP / (peers - 1)), jnp.full(peers, DOWN / (peers - 1))
    bandwidth = p2p.link_bandwidth(found, *each, jnp.full(3, RELAY))
    time = p2p.rpc().time(found.delay, MODEL, jnp.maximum(bandwidth, 1e-9))
    return float(jnp.max(jnp.where(found.link, time, 0.0)))


def graphs(seeds: Sequence[int], peers: int, mix: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Links of every graph, one for each seed."""
    full = ~np.eye(peers, dtype=bool)
    links: dict[str, list[np.ndarray]] = {name: [] for name in GRAPHS}
    for seed in seeds:
        key = jax.random.key(seed)
        punched = network(key, peers, mix)
        dialled = network(key, peers, mix, attempts=0)
        links[COMPLETE].append(full)
        links[RELAYED].append(np.asarray(punched.link))
        links[PUNCHED].append(np.asarray(punched.direct))
        links[DIALLED].append(np.asarray(dialled.direct))
    return links


def trained(
    method: str, links: dict[str, list[np.ndarray]], seeds: Sequence[int], config: Any
) -> dict[str, dict[str, np.ndarray]]:
    """Curves of a method on every graph, `[networks x splits, T]`."""
    data = dx.data.digits()
    labels = np.asarray(data.labels)
    steps = 1 if method == "D-PSGD" else config.local_steps
    task = Paired(
        data,
        [label_priors(labels, config.peers, config.alpha, 64, seed) for seed in seeds],
        seeds,
        dx.models.MLP((32,), classes=10),
        local_steps=steps,
        batch_size=config.batch_size * config.local_steps // steps,
        rounds=config.rounds,
        tail=3,
    )

    def make(matrix: Any) -> dx.Algorithm:
        mixer = given_matrix(matrix)
        if method == "D-PSGD":
            last = decentralized.Order.ADAPT_THEN_COMBINE
            return decentralized.dpsgd(task.loss, optax.sgd(config.single_rate), mixer, order=last)
        return decentralized.dfedadmm(task.loss, optax.sgd(config.rate), mixer)

    # The complete graph and that of all who reach each other are often one and the same.
    several = [(name, place) for name in links for place in range(len(links[name]))]
    weights = {spot: np.asarray(p2p.metropolis_of(links[spot[0]][spot[1]])) for spot in several}
    distinct = list({one.tobytes(): one for one in weights.values()}.values())
    found = task.run(make, distinct)
    number = {one.tobytes(): place for place, one in enumerate(distinct)}
    curves = {}
    for name in links:
        rows = [number[weights[name, place].tobytes()] for place in range(len(links[name]))]
        curves[name] = {
            what: np.concatenate([found[what][row] for row in rows])
            for what in ("mean model", "distance", "local")
        }
    return curves
