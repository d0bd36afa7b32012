"""Consensus ADMM without a server: clients mix their variables and keep their duals."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.channel import Channel
from dflax.data.dataset import Dataset
from dflax.decentralized.framework.protocol import Client, adapt_then_combine
from dflax.gossip.mixer import Mixer, require_mean_kept
from dflax.local.consensus import Minimise, Nearby, Splitting, identity, minimised
from dflax.models.averaged import of_weights
from dflax.population import Assignment


def consensus(
    minimise: Minimise,
    penalty: float,
    mixer: Mixer,
    *,
    start: Callable[..., tuple[Params, Any]] | None = None,
    view: Callable[[Params], PyTree[Array]] = identity,
    own_weight: float = 0.5,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Decentralized consensus ADMM: minimise sum_i f_i(x_i) subject to E x_i = E x_j of neighbours.

    A round, for the clients i that take part:

        x_i      = argmin of f_i(x) + (rho / 2) |E x - c|^2, c = z_i - lambda_i / rho, or near it
        z_i      = a E x_i + (1 - a) sum_j W_ij channel(E x_j)
        lambda_i = lambda_i + rho (E x_i - z_i)

    Variables are mixed, and no duals: sum_i lambda_i stays 0 where W is symmetric, so that at a fixed
    point the variables agree and the gradients add up to 0, on any connected graph and with one step of
    gossip a round. (Where E x_i + lambda_i / rho is mixed, as a server would, a sparse graph has another
    fixed point.) With a = 1/2 and W the neighbours' mean on a regular graph it is ADMM with a dual on
    every edge. On the complete graph with a = 0 it is `dflax.server.consensus`.

    Args:
      minimise: `(assignment, own, nearby, data, index) -> Minimised` for one client, see
        `dflax.local.Splitting` and `dflax.local.Nearby`.
      penalty: rho > 0; traceable.
      mixer: W, symmetric and mean-keeping, see `dflax.gossip`.
      start: `(z, *given) -> (x, memory)` with leaves `[n, ...]`, `given` what a user passes to `init`
        after the model. Default: x_i is the client's z, and nothing is remembered.
      view: E, from a client's variable to what is shared; linear. Default all of it.
      own_weight: a in [0, 1); traceable. 1/2 makes a W of eigenvalues in [-1, 1] safe; 0 is faster
        where W has no negative ones.
      channel: what happens to the messages on the way; see `adapt_then_combine`.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; z_i are `state.clients.params`, x_i and lambda_i are in
      `state.clients.memory`, a `Splitting`. Clients that do not take part keep all three. Metrics: what
      `minimise` measures, `primal_residual` (mean |E x_i - z_i|^2 before the mixing), and the mixer's.

    Raises:
      TypeError, ValueError: naming the argument; a mixer that is known to move the mean.

    References:
      Shi et al., On the Linear Convergence of the ADMM in Decentralized Consensus Optimization,
      arXiv 1307.5561.
    """
    require_mean_kept(mixer, "decentralized consensus ADMM")
    validation.function("minimise", minimise, takes=5)
    validation.function("view", view, takes=1)
    if start is not None:
        validation.function("start", start)
    validation.real("penalty", penalty, low=0.0, low_open=True, scalar=True)
    validation.real("own_weight", own_weight, low=0.0, high=1.0, high_open=True, scalar=True)

    def begin(key: Key[Array, ""], models: Params, *given: Any) -> Splitting:
        x, memory = (models, ()) if start is None else start(models, *given)
        duals = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), models
        )
        return Splitting(x, duals, memory=memory)

    def work(
        assignment: Assignment, own: Client, data: Dataset, index: Array
    ) -> tuple[Client, Metrics]:
        z, splitting = own
        center = jax.tree.map(lambda z, y: (z - y / penalty).astype(z.dtype), z, splitting.dual)
        nearby = Nearby(center, jnp.asarray(penalty), z)
        after, metrics = minimised(minimise, assignment, splitting, nearby, data, index)
        apart = jax.tree.map(jnp.subtract, view(after.params), z)
        residual = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(apart))
        return Client(z, after), metrics | {"primal_residual": residual}

    def message(before: Client, after: Client, index: Array) -> PyTree[Array]:
        return view(after.memory.params)

    def hear(before: Client, after: Client, heard: PyTree[Array], index: Array) -> Client:
        seen = view(after.memory.params)
        z = jax.tree.map(
            lambda x, w: (own_weight * x + (1 - own_weight) * w).astype(x.dtype), seen, heard
        )
        apart = of_weights(jax.tree.map(jnp.subtract, seen, z))
        dual = jax.tree.map(
            lambda y, d: (y + penalty * d).astype(y.dtype), after.memory.dual, apart
        )
        return Client(z, after.memory._replace(dual=dual))

    return adapt_then_combine(
        work, mixer, start=begin, message=message, hear=hear, channel=channel, at_once=at_once
    )
