"""Continuized acceleration: dual gradients over one random link at a time."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.decentralized.framework.owners import Places, at_owners, difference
from dflax.decentralized.framework.rows import starts
from dflax.events.law import require_drawn_by
from dflax.events.node_events import NodeEvent
from dflax.events.stream import Stream
from dflax.local.convex.conditioning import verify_conditioning
from dflax.local.convex.conjugate import Conjugate
from dflax.topology.gossip_rates import GossipRates, given_rates
from dflax.topology.graph import Graph, require_undirected
from dflax.topology.laplacian import effective_resistances


class Shared(NamedTuple):
    """What exists once.

    Attributes:
      resistances: `[n, n]`, effective resistance of each link at unit total rate.
      time: of the last event.
      gradients: dual gradients so far, two per communication.
      communications: so far.
    """

    resistances: Float[Array, "n n"]
    time: Float[Array, ""]
    gradients: Int[Array, ""]
    communications: Int[Array, ""]


class Nodes(NamedTuple):
    """What every node carries, as of its own last event.

    Attributes:
      params: the primal point of z at the node's last event, leaves `[n, ...]`.
      duals: (y, z), leaves `[n, 2, ...]`.
    """

    params: Params
    duals: Params


def continuized(
    conjugate: Conjugate,
    graph: Graph,
    *,
    strong_convexity: float | Float[Array, ""],
    smoothness: float | Float[Array, ""],
) -> Algorithm:
    """Asynchronous dual acceleration: a uniformly random link at each spike of a rate-1 process.

    Between events y' = eta (z - y), z' = eta (y - z). At link (i, j), with resistance R_ij:

        G = grad f_i*(y_i) - grad f_j*(y_j)
        y_i -= gamma R_ij G,   y_j += gamma R_ij G,   z_i -= gamma~ G,   z_j += gamma~ G

    Args:
      conjugate: `(y, batch) -> grad f_i*(y)`; the batch holds all that node i has.
      graph: undirected and connected, of at most 3000 nodes.
      strong_convexity: mu > 0 of every f_i; traceable.
      smoothness: L >= mu of every f_i; traceable.

    Returns:
      An `Algorithm` whose step takes communications drawn by `NodeEvents` from
      `poisson_stream(unit_rates(graph), events, seed=0, gradient_rate=0.0)`. Solutions are
      `state.clients.params`, grad f_i*(z_i). Duals start at 0. Metrics: `time`, `gradients`,
      `communications` so far.

    Raises:
      TypeError, ValueError: naming the argument; mu > L where both are known (traced values pass), and
        a graph that is directed or not connected. From the step: events that were drawn by other
        rates, or with gradients of their own.

    References:
      Even et al., A Continuized View on Nesterov Acceleration for Stochastic Gradient Descent and
      Randomized Gossip, arXiv 2106.07644.
    """
    validation.function("conjugate", conjugate, "It is (y, batch) -> x.")
    require_undirected(graph, "graph")
    verify_conditioning(strong_convexity, smoothness)
    rates = unit_rates(graph)
    slowest, resistance = 1.0 / rates.chi_1, 2.0 * rates.chi_2
    mu, top = strong_convexity, smoothness
    eta = (slowest / resistance * mu / top) ** 0.5
    gamma, gamma_tilde = mu / (2 * resistance), (top * mu / (2 * slowest * resistance)) ** 0.5
    table = np.zeros((graph.nodes, graph.nodes))
    first, second = graph.links.T
    table[first, second] = table[second, first] = effective_resistances(
        graph, 1.0 / len(graph.links)
    )

    def init(key: Key[Array, ""], params: Params | Callable[..., Params]) -> FederatedState:
        start = starts(key, params, graph.nodes)
        duals = jax.tree.map(
            lambda leaf: jnp.zeros((leaf.shape[0], 2, *leaf.shape[1:]), leaf.dtype), start
        )
        shared = Shared(jnp.asarray(table), jnp.zeros(()), jnp.int32(0), jnp.int32(0))
        return FederatedState(jnp.int32(0), shared, Nodes(start, duals))

    def flowed(rows: Params, gap: Array) -> Params:
        share = 0.5 * (1.0 - jnp.exp(-2.0 * eta * gap))

        def mix(leaf: Array) -> Array:
            change = share.astype(leaf.dtype) * (leaf[1] - leaf[0])
            return jnp.stack([leaf[0] + change, leaf[1] - change])

        return jax.tree.map(mix, rows)

    def part(rows: Params, which: int) -> Params:
        return jax.tree.map(lambda leaf: leaf[which], rows)

    def on_link(places: Places, nodes: Nodes, drawn: NodeEvent, resistance: Array) -> Nodes:
        event, (i, j) = drawn.event, (places.one(0), places.one(1))
        batches = [drawn.batch(place) for place in (0, 1)]
        first, second = (
            flowed(place.read(nodes.duals), gap)
            for place, gap in zip((i, j), (event.gaps[0], event.gaps[1]), strict=True)
        )
        slopes = [
            conjugate(part(rows, 0), batch)
            for rows, batch in zip((first, second), batches, strict=True)
        ]
        push, sizes = difference(i, j, *slopes), (gamma * resistance, gamma_tilde)

        def jump(sign: float, rows: Params) -> Params:
            def change(leaf: Array, push: Array) -> Array:
                steps = jnp.stack([jnp.asarray(size, leaf.dtype) * push for size in sizes])
                return leaf + sign * steps

            return jax.tree.map(change, rows, push)

        first, second = jump(-1.0, first), jump(1.0, second)
        duals, params = j.write(i.write(nodes.duals, first), second), nodes.params
        for place, rows, batch in zip((i, j), (first, second), batches, strict=True):
            params = place.write(params, conjugate(part(rows, 1), batch))
        return Nodes(params, duals)

    def step(state: FederatedState, drawn: NodeEvent) -> tuple[FederatedState, Metrics]:
        validation.instance("the event", drawn, NodeEvent, "Run on a dflax.gossip.NodeEvents.")
        validation.instance("the event's row", drawn.event, Stream, "Groups are not supported.")
        fix = "Draw them with poisson_stream(unit_rates(graph), events, seed=0, gradient_rate=0.0)."
        require_drawn_by(drawn.event.law, rates, 0.0, fix)
        event, done = drawn.event, state.server
        i, j = event.nodes[0], event.nodes[1]
        nodes = at_owners(on_link, event.nodes, state.clients, drawn, done.resistances[i, j])
        done = Shared(
            done.resistances,
            event.time.astype(done.time.dtype),
            done.gradients + 2,
            done.communications + 1,
        )
        counts = {k: v for k, v in done._asdict().items() if k != "resistances"}
        return FederatedState(state.round + 1, done, nodes), counts

    return Algorithm(init, step)


def unit_rates(graph: Graph) -> GossipRates:
    """One communication per unit of time, over a uniformly random link."""
    require_undirected(graph, "graph")
    return given_rates(graph, 1.0 / len(graph.links))
