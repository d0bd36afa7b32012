"""MSDA: dual accelerated ascent, each round with a Chebyshev gossip."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.channel import Channel
from dflax.data.dataset import Dataset
from dflax.decentralized.framework.protocol import Client, Number, adapt_then_combine, of_type
from dflax.gossip.chebyshev import chebyshev
from dflax.gossip.fixed import complete
from dflax.local.convex.conditioning import verify_conditioning
from dflax.local.convex.conjugate import Conjugate
from dflax.population import Assignment
from dflax.topology.graph import Graph, require_undirected
from dflax.topology.laplacian_mixing import extremes, laplacian_mixing


class Duals(NamedTuple):
    """A client's memory.

    Attributes:
      dual: X.
      before: Y, the dual variable before the momentum step.
    """

    dual: Params
    before: Params


def msda(
    conjugate: Conjugate,
    graph: Graph,
    *,
    strong_convexity: float | Float[Array, ""],
    smoothness: float | Float[Array, ""],
    channel: Channel | None = None,
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
      channel: what happens to the primal points on the way; see `adapt_then_combine`. Lost messages
        leave the sum of the dual variables at 0, noise and compression do not.
      at_once: see `dflax.map_clients`.

    Returns:
      As `adapt_then_combine`; the primal points are `state.clients.params`, the dual variables
      `state.clients.memory`, a `Duals`. These start at 0 whatever the start, whose shapes alone are
      read. Rates are guaranteed where everyone takes part in every round: whoever is absent does not
      take its step of momentum, after which the dual variables no longer sum to 0.

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

    def start(key: Key[Array, ""], models: Params) -> Duals:
        return Duals(*(jax.tree.map(jnp.zeros_like, models) for _ in range(2)))

    def primal(
        assignment: Assignment, own: Client, data: Dataset, index: Number
    ) -> tuple[Client, Metrics]:
        x = conjugate(own.memory.dual, data.fetch(assignment.minibatches[0]))
        return Client(x, own.memory), {}

    def ascend(before: Client, after: Client, heard: Params, index: Number) -> Client:
        held = before.memory
        new = jax.tree.map(lambda d, x, m: d - eta * (x - m), held.dual, after.params, heard)
        dual = jax.tree.map(lambda y, old: (1 + momentum) * y - momentum * old, new, held.before)
        return of_type(Client(after.params, Duals(dual, new)), before)

    return adapt_then_combine(
        primal, gossip, start=start, hear=ascend, channel=channel, at_once=at_once
    )


def gossip_steps(graph: Graph) -> int:
    """K = floor(1 / sqrt(gamma)), the communications over every link in a round."""
    ends = extremes(graph)
    return max(1, math.floor(math.sqrt(ends.largest / ends.least) + 1e-9))
