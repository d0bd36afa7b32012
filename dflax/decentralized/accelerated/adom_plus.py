"""ADOM+: accelerated primal optimisation over networks, with or without several gossip steps a round."""

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
from dflax.gossip.choose import mixer
from dflax.local.convex.conditioning import verify_conditioning
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.population import Assignment
from dflax.topology.graph import Graph, require_undirected
from dflax.topology.laplacian_mixing import extremes, laplacian_mixing


class Duals(NamedTuple):
    """A client's memory beside its model x.

    Attributes:
      x_fast: x_f.
      y: dual of the consensus of x.
      y_fast: y_f.
      z: its complement, sum over nodes 0.
      z_fast: z_f.
      feedback: M, what compression of the gossip left over.
    """

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
    channel: Channel | None = None,
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
      channel: what happens to q and y_g + z_g on the way; see `adapt_then_combine`. Lost messages
        leave the sum of z over nodes at 0, noise and compression do not.
      at_once: see `dflax.map_clients`.

    Returns:
      As `adapt_then_combine`; models are `state.clients.params`, all else `state.clients.memory`, a
      `Duals`. W acts on two vectors that are known at the same time: a message counts two models.
      Rates are guaranteed where everyone takes part in every round: whoever is absent does not take its
      step of momentum, after which z no longer sums to 0.

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

    def start(key: Key[Array, ""], models: Params) -> Duals:
        return Duals(models, *(jax.tree.map(jnp.zeros_like, models) for _ in range(5)))

    def ahead(own: Client) -> tuple[Params, Params, Params]:
        """x_g, z_g and y_g + z_g."""
        held = own.memory
        x_g = _mix(tau_1, own.params, held.x_fast)
        y_g, z_g = _mix(sigma_1, held.y, held.y_fast), _mix(sigma_1, held.z, held.z_fast)
        return x_g, z_g, jax.tree.map(jnp.add, y_g, z_g)

    def primal_and_dual(
        assignment: Assignment, own: Client, data: Dataset, index: Number
    ) -> tuple[Client, Metrics]:
        held = own.memory
        x_g, z_g, dual = ahead(own)
        batch = data.fetch(assignment.minibatches[0], assignment.key)
        slope, metrics = oracle(x_g, batch, assignment.key)

        def solve(g: Array, x_g: Array, x: Array, y: Array, dual: Array) -> tuple[Array, Array]:
            g = g - nu * x_g
            first = x + eta * alpha * x_g - eta * g
            second = y + theta * beta * g - theta * dual / nu
            return (
                ((1 + theta * beta) * first + eta * second) / determinant,
                ((1 + eta * alpha) * second - theta * first) / determinant,
            )

        x, y = _unzip(jax.tree.map(solve, slope, x_g, own.params, held.y, dual))
        x_fast = jax.tree.map(lambda g, new, old: g + tau_2 * (new - old), x_g, x, own.params)
        y_g = jax.tree.map(jnp.subtract, dual, z_g)
        y_fast = jax.tree.map(lambda g, new, old: g + sigma_2 * (new - old), y_g, y, held.y)
        after = Client(x, held._replace(x_fast=x_fast, y=y, y_fast=y_fast))
        return of_type(after, own), metrics

    def residuals(before: Client, after: Client, index: Number) -> dict[str, Params]:
        dual = ahead(before)[2]
        q = jax.tree.map(lambda d, m: gamma / nu * d + m, dual, before.memory.feedback)
        return of_type({"q": q, "dual": dual}, {"q": before.params, "dual": before.params})

    def ascend(before: Client, after: Client, heard: dict[str, Params], index: Number) -> Client:
        _, z_g, dual = ahead(before)
        q = residuals(before, after, index)["q"]
        # A mixing is I - W: what W takes is the difference.
        z = jax.tree.map(
            lambda z, z_g, q, mixed: z + gamma * delta * (z_g - z) - (q - mixed),
            before.memory.z,
            z_g,
            q,
            heard["q"],
        )
        z_fast = jax.tree.map(lambda g, d, m: g - zeta * (d - m), z_g, dual, heard["dual"])
        held = after.memory._replace(z=z, z_fast=z_fast, feedback=heard["q"])
        return of_type(Client(after.params, held), before)

    return adapt_then_combine(
        primal_and_dual,
        gossip,
        start=start,
        message=residuals,
        hear=ascend,
        channel=channel,
        at_once=at_once,
    )


def _mix(share: float | Array, first: Params, second: Params) -> Params:
    return jax.tree.map(lambda a, b: share * a + (1 - share) * b, first, second)


def _unzip(pairs: Params) -> tuple[Params, Params]:
    def is_pair(node: object) -> bool:
        return type(node) is tuple

    return (
        jax.tree.map(lambda pair: pair[0], pairs, is_leaf=is_pair),
        jax.tree.map(lambda pair: pair[1], pairs, is_leaf=is_pair),
    )
