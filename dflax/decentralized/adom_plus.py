"""ADOM+: accelerated primal optimisation over networks, with or without several gossip steps a round."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.clients import map_clients
from dflax.data.dataset import Dataset
from dflax.federation import Assignment, Round
from dflax.gossip.choose import mixer
from dflax.gossip.rows import starts
from dflax.local.conditioning import verify_conditioning
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.topology.graph import Graph, require_undirected
from dflax.topology.laplacian_mixing import extremes, laplacian_mixing


class Shared(NamedTuple):
    """What exists once: the mixer's tables."""

    mixer: Params


class Nodes(NamedTuple):
    """What every node carries; all leaves `[n, ...]`.

    Attributes:
      params: x.
      x_fast: x_f.
      y: dual of the consensus of x.
      y_fast: y_f.
      z: its complement, sum over nodes 0.
      z_fast: z_f.
      feedback: M, what compression of the gossip left over; sum over nodes 0.
    """

    params: Params
    x_fast: Params
    y: Params
    y_fast: Params
    z: Params
    z_fast: Params
    feedback: Params


def adom_plus(
    loss: Loss | Oracle,
    graph: Graph,
    *,
    strong_convexity: float | Float[Array, ""],
    smoothness: float | Float[Array, ""],
    multi_consensus: bool = False,
    at_once: int | None = None,
) -> Algorithm:
    """Everyone takes a gradient, then everyone communicates: optimal rates, rounds in lockstep.

    With W = Laplacian / (its largest eigenvalue), chi the ratio of its extreme positive eigenvalues,
    mu, L, nu = mu/2 and the constants of the paper, a round is

        x_g = tau_1 x + (1 - tau_1) x_f        y_g, z_g likewise by sigma_1
        g   = grad F(x_g) - nu x_g
        x+  = x + eta alpha (x_g - x+) - eta (g - y+)
        y+  = y + theta beta (g - y+) - theta ((y_g + z_g)/nu + x+)          solved together
        q   = (gamma/nu) (y_g + z_g) + M
        z+  = z + gamma delta (z_g - z) - W q,    M+ = q - W q
        x_f = x_g + tau_2 (x+ - x),   y_f = y_g + sigma_2 (y+ - y),   z_f = z_g - zeta W (y_g + z_g)

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`; a federation with `local_steps=1`
        and whole clients as batches gives exact gradients.
      graph: undirected and connected, of at most 3000 nodes.
      strong_convexity: mu > 0 of every f_i; traceable.
      smoothness: L >= mu of every f_i; traceable.
      multi_consensus: repeat the gossip ceil(chi ln 2) times a round and calculate with chi = 2.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; models are `state.clients.params`. All clients take part in
      every round. Metrics: the loss's own and `models_sent` (over directed edges; W acts on two
      vectors that are known at the same time and travel as one message).

    Raises:
      TypeError, ValueError: naming the argument; mu > L where both are known (traced values pass), and
        a graph that is directed or not connected.

    References:
      Kovalev et al., ADOM+: Lower Bounds and Optimal Algorithms for Smooth and Strongly Convex
      Decentralized Optimization Over Time-Varying Networks, arXiv 2106.04469.
    """
    oracle = gradient(loss)
    require_undirected(graph, "graph")
    validation.flag("multi_consensus", multi_consensus)
    verify_conditioning(strong_convexity, smoothness)
    if at_once is not None:
        validation.integer("at_once", at_once, low=1)
    ends = extremes(graph)
    chi = ends.largest / ends.least
    repeats = max(1, math.ceil(chi * math.log(2.0) - 1e-9)) if multi_consensus else 1
    chi = 2.0 if repeats > 1 else chi
    gossip = mixer(laplacian_mixing(graph, 1.0 / ends.largest), steps=repeats)
    mu, top = strong_convexity, smoothness
    nu, beta, delta, zeta, alpha = mu / 2, 1 / (2 * top), 1 / (17 * top), 0.5, mu / 2
    kappa = top / mu
    tau_1, tau_2 = 1 / (kappa**0.5 + 0.5), kappa**-0.5
    sigma_2 = tau_2 / (16 * chi)
    sigma_1 = 1 / (1 / sigma_2 + 0.5)
    eta, gamma, theta = 1 / (top * tau_2), nu / (14 * sigma_2 * chi**2), nu / (4 * sigma_2)
    determinant = (1 + eta * alpha) * (1 + theta * beta) + eta * theta

    def init(key: Key[Array, ""], params: Params | Callable[..., Params]) -> FederatedState:
        start = starts(key, params, gossip.clients)
        zeros = [jax.tree.map(jnp.zeros_like, start) for _ in range(5)]
        nodes = Nodes(start, jax.tree.map(jnp.copy, start), *zeros)
        shared = Shared(gossip.init((start, start)))
        return FederatedState(jnp.int32(0), shared, nodes)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        if round.cohort is not None or round.clients != gossip.clients:
            raise ValueError(
                f"graph must join all clients of the federation, and all take part, got "
                f"{gossip.clients} nodes and {round.clients} clients. Leave participation out."
            )
        own = state.clients

        def slope(assignment: Assignment, x: Params, data: Dataset) -> tuple[Params, Metrics]:
            batch = data.fetch(assignment.minibatches[0], assignment.key)
            return oracle(x, batch, assignment.key)

        x_g = _mix(tau_1, own.params, own.x_fast)
        y_g, z_g = _mix(sigma_1, own.y, own.y_fast), _mix(sigma_1, own.z, own.z_fast)
        slopes, metrics = map_clients(
            slope, round.assignments, x_g, shared=(round.data,), at_once=at_once
        )

        def solve(g: Array, x_g: Array, x: Array, y: Array, dual: Array) -> tuple[Array, Array]:
            g = g - nu * x_g
            first = x + eta * alpha * x_g - eta * g
            second = y + theta * beta * g - theta * dual / nu
            return (
                ((1 + theta * beta) * first + eta * second) / determinant,
                ((1 + eta * alpha) * second - theta * first) / determinant,
            )

        dual = jax.tree.map(jnp.add, y_g, z_g)
        x, y = _unzip(jax.tree.map(solve, slopes, x_g, own.params, own.y, dual))
        q = jax.tree.map(lambda d, m: gamma / nu * d + m, dual, own.feedback)
        heard: tuple[Params, Params]
        heard, mixing, sent = gossip.apply((q, dual), state.server.mixer, round.key, round.number)
        mixed_q, mixed_dual = heard
        # A mixing is I - W: what W takes is the difference.
        z = jax.tree.map(
            lambda z, z_g, q, mixed: z + gamma * delta * (z_g - z) - (q - mixed),
            own.z,
            z_g,
            q,
            mixed_q,
        )
        nodes = Nodes(
            params=x,
            x_fast=jax.tree.map(lambda g, new, old: g + tau_2 * (new - old), x_g, x, own.params),
            y=y,
            y_fast=jax.tree.map(lambda g, new, old: g + sigma_2 * (new - old), y_g, y, own.y),
            z=z,
            z_fast=jax.tree.map(lambda g, d, m: g - zeta * (d - m), z_g, dual, mixed_dual),
            feedback=mixed_q,
        )
        metrics = jax.tree.map(lambda leaf: leaf.mean(0), metrics) | sent
        return FederatedState(state.round + 1, Shared(mixing), nodes), metrics

    return Algorithm(init, step)


def _mix(share: float | Array, first: Params, second: Params) -> Params:
    return jax.tree.map(lambda a, b: share * a + (1 - share) * b, first, second)


def _unzip(pairs: Params) -> tuple[Params, Params]:
    def is_pair(node: object) -> bool:
        return type(node) is tuple

    return (
        jax.tree.map(lambda pair: pair[0], pairs, is_leaf=is_pair),
        jax.tree.map(lambda pair: pair[1], pairs, is_leaf=is_pair),
    )
