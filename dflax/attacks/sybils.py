"""Sybils: nodes of one adversary, with few edges to the honest nodes of a graph."""

import collections
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from dflax import validation
from dflax.aggregation.aggregator import counted_mean
from dflax.algorithm import Metrics
from dflax.clients import replicate, select
from dflax.gossip.mixer import Mixer, MixerState, Mixing, Models, require_mixer
from dflax.topology import Graph
from dflax.topology.graph import from_edges


def with_sybils(
    graph: Graph, attack_edges: float, *, degree: int = 7, seed: int = 0, name: str = "sybils"
) -> Graph:
    """A graph with Sybils spread over it: phi attack edges for every honest node, on the mean.

    Every honest node gets floor(phi) edges to Sybils, and `round(h (phi - floor(phi)))` of the h honest
    nodes get one more: those from which the others are nearest, the k-medoids of the distances along
    edges. Each Sybil takes up to `degree` of these edges, to a node and those nearest to it that have
    none yet, and no two of them to one node.

    Args:
      graph: the honest nodes, numbered 0 to h - 1, undirected.
      attack_edges: phi > 0, on the mean over honest nodes.
      degree: edges of a Sybil, at most; in [1, h].
      seed: of the host's generator, for whom the Sybils begin with.
      name: for tables and figures.

    Returns:
      A `Graph` of h + s nodes, of which h, ..., h + s - 1 are Sybils. There are no edges between Sybils:
      they are one adversary. Without an edge that joins them the honest nodes are as they were.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Werthenbach and Pouwelse, Towards Sybil Resilience in Decentralized Learning, arXiv 2306.15044.
    """
    validation.instance("graph", graph, Graph, "Make one with dflax.topology.")
    if graph.directed:
        raise ValueError("graph must be undirected for Sybils, got a directed one.")
    honest = graph.nodes
    validation.real(
        "attack_edges", attack_edges, low=0.0, high=float(honest), low_open=True, scalar=True
    )
    validation.integer("degree", degree, low=1, high=honest)
    validation.seed("seed", seed)
    rng = np.random.default_rng(seed)
    whole = int(np.floor(attack_edges))
    more = round(honest * (attack_edges - whole))
    if not whole + more:
        raise ValueError(
            f"attack_edges must make one edge at least, got {attack_edges} of each of {honest} nodes."
        )
    everyone = rng.permutation(honest)
    extra = rng.permutation(_medoids(graph, more))
    # Each pass over the nodes is dealt to Sybils of its own, so none has two edges to one node.
    passes = [everyone] * whole + ([extra] if more else [])
    neighbours = [graph.senders[graph.receivers == node] for node in range(honest)]
    edges, sybil = [], honest
    for victims in passes:
        free = set(victims.tolist())
        for node in victims.tolist():
            if node in free:
                near = _nearest(neighbours, node, free, degree)
                free -= set(near)
                edges += [(one, sybil) for one in near]
                sybil += 1
    kept = [(int(a), int(b)) for a, b in zip(graph.senders, graph.receivers, strict=True) if a < b]
    return from_edges(sybil, np.asarray(kept + edges), disconnected=not graph.connected, name=name)


def one_adversary(mixer: Mixer, honest: int) -> Mixer:
    """The Sybils of a mixing as one adversary: one model, sent by all, and no rule but the plain mean.

        before   every Sybil's model becomes that of the first Sybil, z
        mixing   the mixer, for the honest clients
        after    every Sybil's model becomes the plain mean of z and of all that Sybils received

    What an honest client sends to several Sybils counts as often. Who is absent sends and receives
    nothing, and keeps its model; the first Sybil is the first that is there.

    Args:
      mixer: along the edges of one graph, for example `gossip.by_rule(with_sybils(graph, 1.0), rule)`.
      honest: h; clients h, ..., n - 1 are the Sybils.

    Returns:
      A `Mixer` with the metrics of the one it wraps.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Werthenbach and Pouwelse, Towards Sybil Resilience in Decentralized Learning, arXiv 2306.15044.
    """
    require_mixer(mixer)
    graph, clients = mixer.known.graph, mixer.clients
    if graph is None:
        raise ValueError(
            "mixer must mix along one known graph, which says what Sybils receive, got one that does "
            "not. Make it with gossip.mixer(graph) or gossip.by_rule(graph, rule)."
        )
    validation.integer("honest", honest, low=1, high=clients - 1, fix="The others are Sybils.")
    received = (graph.senders < honest) & (graph.receivers >= honest)
    edges = graph.senders[received], graph.receivers[received]

    def init(models: Models) -> tuple[MixerState, tuple[Array, Array]]:
        return mixer.init(models), (jnp.asarray(edges[0]), jnp.asarray(edges[1]))

    def apply(
        models: Models, state: tuple[MixerState, tuple[Array, Array]], mixing: Mixing
    ) -> tuple[Models, Any, Metrics]:
        inner, (senders, receivers) = state
        everyone = jnp.arange(clients)
        there = jnp.ones(clients, bool) if mixing.active is None else mixing.active > 0
        sybils = there & (everyone >= honest)
        first = jnp.argmax(sybils)
        common = replicate(counted_mean(models, sybils * (everyone == first)), clients)
        mixed, inner, metrics = mixer.apply(select(sybils, common, models), inner, mixing)
        heard = (there[senders] & there[receivers]).astype(jnp.float32)
        shares = jnp.zeros(clients).at[senders].add(heard).at[first].add(1)
        mean = replicate(counted_mean(models, shares), clients)
        return select(sybils, mean, mixed), (inner, (senders, receivers)), metrics

    known = mixer.known._replace(symmetric=False, doubly_stochastic=False)
    return Mixer(clients, init, apply, known)


def _medoids(graph: Graph, count: int) -> Int[np.ndarray, " k"]:
    """So many nodes with a small sum, over all nodes, of the edges to the nearest of them.

    Chosen one after another, each the best beside those before; then each moves to the middle of the
    nodes that are nearest to it, until the sum is least. Of equal ones the first.
    """
    from scipy.sparse import csgraph

    if not count:
        return np.zeros(0, int)
    apart = csgraph.shortest_path(graph.sparse(), unweighted=True)
    # Farther than any path.
    apart = np.where(np.isfinite(apart), apart, graph.nodes)
    nearest = np.full(graph.nodes, np.inf)
    chosen: list[int] = []
    for _ in range(count):
        sums = np.minimum(apart, nearest).sum(1)
        sums[chosen] = np.inf
        chosen.append(int(sums.argmin()))
        nearest = np.minimum(nearest, apart[chosen[-1]])
    medoids = np.array(chosen)
    while True:
        group = apart[medoids].argmin(0)
        # A medoid is nearest to itself, so no group is empty, and every group keeps its own.
        groups = [np.flatnonzero(group == place) for place in range(count)]
        moved = np.array([own[apart[np.ix_(own, own)].sum(1).argmin()] for own in groups])
        if apart[moved].min(0).sum() >= apart[medoids].min(0).sum():
            return medoids
        medoids = moved


def _nearest(neighbours: list[np.ndarray], start: int, free: set[int], count: int) -> list[int]:
    """Up to so many of the free nodes that can be reached, in the order of a breadth-first walk."""
    found: list[int] = []
    seen, reached = {start}, collections.deque([start])
    while reached and len(found) < count:
        node = reached.popleft()
        if node in free:
            found.append(node)
        fresh = [other for other in neighbours[node].tolist() if other not in seen]
        seen.update(fresh)
        reached.extend(fresh)
    return found
