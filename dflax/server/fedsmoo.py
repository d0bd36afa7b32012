"""FedSMOO: FedDyn whose clients agree on where to look for sharpness."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.sam import SMALLEST_NORM
from dflax.local.solver import Optimizer
from dflax.server.framework.dual import Look, with_duals


def fedsmoo(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    clients: int,
    *,
    pull: float = 0.1,
    radius: float = 0.1,
    **options: Any,
) -> Algorithm:
    """FedSMOO: FedDyn with a perturbation that is corrected towards everyone's, s.

    In every local step of client i, on one minibatch,

        e    = rho (g - mu_i - s) / |g - mu_i - s|,      g = grad f_i(y)
        mu_i = mu_i + e - s
        y    = y - rate (grad f_i(y + e) + pull (y - x) + pull h_i)

    and after the round, beside FedDyn's updates of h_i and x,

        s = rho M / |M|,   M = mean over S of mu_i

    Weight decay in the optimiser is in h_i, as for `feddyn`, and not in mu_i. s is the simplified rule
    of the authors' code. Two gradients a local step.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      clients: n, the number of clients of the federation.
      pull: strength of the proximal term > 0, with (local rate) * (pull + weight decay) < 1;
        traceable.
      radius: rho, of the perturbation, >= 0, traceable.
      **options: `aggregator`, `channel`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm`, with the states and metrics of `feddyn`; mu is `state.clients.memory.oracle` and s
      `state.server.memory.shared`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Sun et al., Dynamic Regularized Sharpness Aware Minimization in Federated Learning,
      arXiv 2305.11584.
    """
    oracle = gradient(loss)
    validation.real("radius", radius, low=0.0, scalar=True)

    def scale(tree: Params) -> Array:
        return radius / (optax.tree.norm(tree) + SMALLEST_NORM)

    def scaled(factor: Array, tree: Params) -> Params:
        return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, tree)

    def direction(tree: Params) -> Params:
        """`rho tree / |tree|`."""
        return scaled(scale(tree), tree)

    def corrected_sam(common: Params) -> Oracle:
        def evaluate(
            params: Params, batch: Batch, key: Key[Array, ""], own: Params
        ) -> tuple[Params, Metrics, tuple[Array, Params]]:
            here, metrics = oracle(params, batch, key)
            wanted = jax.tree.map(lambda g, mu, s: g - mu - s, here, own, common)
            factor = scale(wanted)
            there, _ = oracle(jax.tree.map(jnp.add, params, scaled(factor, wanted)), batch, key)
            return there, metrics, (factor, wanted)

        def conclude(
            there: Params, noted: tuple[Array, Params], params: Params, own: Params
        ) -> tuple[Params, Params]:
            perturbation = scaled(*noted)
            return there, jax.tree.map(lambda mu, e, s: mu + e - s, own, perturbation, common)

        return Oracle(evaluate, conclude=conclude)

    def zeros(params: Params) -> Params:
        return jax.tree.map(jnp.zeros_like, params)

    return with_duals(
        Look(corrected_sam, zeros, direction), optimizer, clients, pull=pull, **options
    )
