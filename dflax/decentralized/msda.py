"""MSDA: dual accelerated ascent, each round with a Chebyshev gossip."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.clients import map_clients
from dflax.data.dataset import Dataset
from dflax.federation import Assignment, Round
from dflax.gossip.chebyshev import chebyshev
from dflax.gossip.fixed import complete
from dflax.gossip.rows import starts
from dflax.local.conditioning import verify_conditioning
from dflax.local.conjugate import Conjugate
from dflax.topology.graph import Graph, require_undirected
from dflax.topology.laplacian_mixing import extremes, laplacian_mixing


class Shared(NamedTuple):
    """What exists once: the mixer's tables."""

    mixer: Params


class Nodes(NamedTuple):
    """What every node carries; leaves `[n, ...]`.

    Attributes:
      params: the primal point of its dual variable.
      dual: X.
      before: Y, the dual variable before the momentum step.
    """

    params: Params
    dual: Params
    before: Params


def msda(
    conjugate: Conjugate,
    graph: Graph,
    *,
    strong_convexity: float | Float[Array, ""],
    smoothness: float | Float[Array, ""],
    at_once: int | None = None,
) -> Algorithm:
    """Multi-step dual accelerated ascent: optimal for a fixed graph when dual gradients are at hand.

    With gamma the ratio of the Laplacian's extreme positive eigenvalues, K = floor(1/sqrt(gamma)) and
    P_K the Chebyshev polynomial that is 1 on agreement and least elsewhere, a round is

        x_i = grad f_i*(X_i),    r = x - P_K(W) x,    Y+ = X - eta r,    X+ = (1 + m) Y+ - m Y

    Args:
      conjugate: `(y, batch) -> grad f_i*(y)`; the batch holds all that node i has.
      graph: undirected and connected, of at most 3000 nodes.
      strong_convexity: mu > 0 of every f_i; traceable.
      smoothness: L >= mu of every f_i; traceable.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; the primal points are `state.clients.params`. Dual variables
      start at 0 whatever the start, whose shapes alone are read. Metrics: `models_sent`.

    Raises:
      TypeError, ValueError: naming the argument; mu > L where both are known (traced values pass), and
        a graph that is directed or not connected.

    References:
      Scaman et al., Optimal algorithms for smooth and strongly convex distributed optimization in
      networks, arXiv 1702.08704.
    """
    validation.function("conjugate", conjugate, "It is (y, batch) -> x.")
    require_undirected(graph, "graph")
    verify_conditioning(strong_convexity, smoothness)
    if at_once is not None:
        validation.integer("at_once", at_once, low=1)
    ends = extremes(graph)
    gamma = ends.least / ends.largest
    steps = gossip_steps(graph)
    if gamma > 1.0 - 1e-9:
        # A complete graph: the polynomial of degree 1 is exact averaging.
        gossip, c = complete(graph.nodes), 0.0
    else:
        matrix = laplacian_mixing(graph, 2.0 / (ends.least + ends.largest))
        eigenvalue = (1.0 - gamma) / (1.0 + gamma)
        gossip = chebyshev(matrix, steps, second_eigenvalue=eigenvalue)
        c = ((1.0 - math.sqrt(gamma)) / (1.0 + math.sqrt(gamma))) ** steps
    root = (smoothness / strong_convexity) ** 0.5
    eta = strong_convexity * (1.0 + c * c) / (1.0 + c) ** 2
    momentum = ((1.0 + c) * root - 1.0 + c) / ((1.0 + c) * root + 1.0 - c)

    def init(key: Key[Array, ""], params: Params) -> FederatedState:
        start = starts(key, params, graph.nodes)
        zeros = [jax.tree.map(jnp.zeros_like, start) for _ in range(2)]
        return FederatedState(jnp.int32(0), Shared(gossip.init(start)), Nodes(start, *zeros))

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        if round.cohort is not None or round.clients != graph.nodes:
            raise ValueError(
                f"graph must join all clients of the federation, and all take part, got "
                f"{graph.nodes} nodes and {round.clients} clients. Leave participation out."
            )

        def primal(assignment: Assignment, dual: Params, data: Dataset) -> Params:
            return conjugate(dual, data.fetch(assignment.minibatches[0]))

        own = state.clients
        x = map_clients(primal, round.assignments, own.dual, shared=(round.data,), at_once=at_once)
        mixed, mixing, sent = gossip.apply(x, state.server.mixer, round.key, round.number)
        after = jax.tree.map(lambda d, x, m: d - eta * (x - m), own.dual, x, mixed)
        dual = jax.tree.map(
            lambda new, old: (1 + momentum) * new - momentum * old, after, own.before
        )
        return FederatedState(state.round + 1, Shared(mixing), Nodes(x, dual, after)), sent

    return Algorithm(init, step)


def gossip_steps(graph: Graph) -> int:
    """K = floor(1 / sqrt(gamma)), the communications over every link in a round."""
    ends = extremes(graph)
    return max(1, math.floor(math.sqrt(ends.largest / ends.least) + 1e-9))
