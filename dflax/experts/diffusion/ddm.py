"""Experts that train apart: an ordinary optimiser for each client, and no exchange at all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.clients import map_cohort, replicate, scatter
from dflax.data.dataset import Dataset
from dflax.generative.averaged import average_of, averaging
from dflax.local.oracle import Loss
from dflax.local.solver import check_optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.population import Assignment, Round


class Expert(NamedTuple):
    """What each client keeps, leaves `[K, ...]`.

    Attributes:
      params: its model.
      optimizer: its optimiser's state, with the average of its models.
    """

    params: Params
    optimizer: PyTree[Array]

    @property
    def average(self) -> Params:
        """The averaged models, from which samples are made."""
        return average_of(self.optimizer)


def ddm(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    experts: int,
    *,
    decay: float | Float[Array, ""] = 0.9999,
    independent: bool = False,
    at_once: int | None = None,
) -> Algorithm:
    """Decentralized Diffusion Models: K experts, each on its own cluster of the data.

    A round of expert k, alone, for each of its local steps:

        x_0 from S_k,   theta_k = optimiser(theta_k, grad loss(theta_k; x_0))
        average_k = decay average_k + (1 - decay) theta_k

    Nothing is exchanged: the compiled step has no collective. What the experts are worth together is
    decided when samples are drawn, see `ensemble`. For every partition of the data

        u_t(x) = sum_k P(c = k | x_t = x) u_{t,k}(x),

    u_{t,k} the field of cluster k alone, so that experts with the ideal router are one ideal model.

    Args:
      loss: of one expert, for example `dflax.generative.denoising`.
      optimizer: each expert's, kept from round to round.
      experts: K, the clients of the federation; `apart` makes one.
      decay: of the averages, in [0, 1); traceable.
      independent: whether `init` gets K models `[K, ...]` in place of one that all start from.
      at_once: experts that a device computes at the same time, see `dflax.map_clients`.

    Returns:
      An `Algorithm`; `init(key, params)`. State per client: `Expert`. Metrics: those of the loss, `[K]`
      each.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      McAllister et al., Decentralized Diffusion Models, arXiv 2501.05450.
    """
    validation.integer("experts", experts, low=1)
    check_optimizer("optimizer", optimizer)
    validation.flag("independent", independent)
    validation.at_once(at_once)
    remembering = averaging(optimizer, decay)
    solve = solver(loss, remembering)

    def init(key: Key[Array, ""], params: Params) -> FederatedState:
        validation.model("params", params)
        if independent:
            validation.leading_axis("params", params, experts)
        models = params if independent else replicate(params, experts)
        return FederatedState(jnp.int32(0), (), Expert(models, jax.vmap(remembering.init)(models)))

    def work(own: Expert, assignment: Assignment, data: Dataset) -> tuple[Expert, Metrics]:
        found = solve(Subproblem(), own.params, assignment, data, optimizer_state=own.optimizer)
        return Expert(found.params, found.optimizer), found.metrics

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        if round.clients != experts:
            raise ValueError(
                f"experts must be the federation's number of clients, {int(round.clients)}, got "
                f"{experts}."
            )
        own, metrics = map_cohort(
            work,
            state.clients,
            round.cohort,
            round.assignments,
            shared=(round.data,),
            at_once=at_once,
        )
        clients = scatter(state.clients, round.cohort, own)
        return FederatedState(state.round + 1, state.server, clients), metrics

    return Algorithm(init, step)
