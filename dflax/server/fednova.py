"""FedNova: changes are divided by how far their clients travelled before they are averaged."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from dflax.algorithm import Algorithm, Metrics, Params
from dflax.data.dataset import Dataset
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, check_optimizer, check_pull
from dflax.local.subproblem import Subproblem
from dflax.local.travel import check_linear, travel
from dflax.population import Assignment
from dflax.server.framework.averaging import descent, local_change
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.with_server import with_server


def fednova(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    server_optimizer: Optimizer | None = None,
    *,
    pull: float | Array | None = None,
    **options: Any,
) -> Algorithm:
    """FedNova: averages of normalised changes, right for clients that do unequal numbers of steps.

    Client i's change is -sum_k a_ik g_ik, of its gradients g_ik with weights that its optimiser and its
    number of steps give. A round, for a cohort S with weights p_i that sum to 1:

        y_i = the client's own number of steps of `optimizer` on f_i from x   i in S, in parallel
        t_i = sum_k a_ik                                                      see dflax.local.travel
        x   = server_optimizer(x, - (sum_i p_i t_i) sum_i p_i (y_i - x) / t_i)

    FedAvg follows sum_i p_i t_i f_i instead of sum_i p_i f_i, so those who do more steps count more.
    With equal numbers of steps FedNova is FedAvg.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one. Plain or momentum SGD with any schedule: linear in its gradients.
      server_optimizer: default `optax.sgd(1.0)`, the paper's; with momentum its server variant.
      pull: mu > 0 of the proximal term (mu / 2) |y - x|^2 of the clients, with (local rate) * pull < 1;
        None for none; traceable.
      **options: `aggregator`, `channel`, `clients`, `at_once`, as for `dflax.server.fedavg`. A message
        is the dict of a normalised change "direction" and the number "travel".

    Returns:
      An `Algorithm`; the model is `state.server.params`. Metrics: the loss's own, `travel` (the
      weighted mean of t_i) and `clients_reporting`. A client that reports without a step counts with
      a change of 0.

    Raises:
      TypeError, ValueError: naming the argument; also an optimiser that is not linear.

    References:
      Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated
      Optimization, arXiv 2007.07481.
    """
    check_optimizer("optimizer", optimizer)
    check_linear("optimizer", optimizer)
    if pull is not None:
        check_pull("pull", pull, optimizer)
    problem = (lambda x: Subproblem(pull=pull, anchor=x)) if pull is not None else None
    change = local_change(loss, optimizer, *([] if problem is None else [problem]))
    start, step = descent(server_optimizer)

    def work(
        assignment: Assignment, own: tuple[()], server: Server, data: Dataset, index: Int[Array, ""]
    ) -> Report:
        report = change(assignment, own, server, data, index)
        steps = assignment.minibatches.shape[0]
        length = travel(optimizer, steps, assignment.local_steps, pull=pull, index=index)
        share = 1.0 / jnp.where(length > 0, length, 1.0)
        direction = jax.tree.map(lambda leaf: leaf * share.astype(leaf.dtype), report.message)
        return report._replace(message={"direction": direction, "travel": length})

    def update(server: Server, received: Received) -> tuple[Params, Any, Metrics]:
        length = received.message["travel"]
        moved = jax.tree.map(
            lambda leaf: length.astype(leaf.dtype) * leaf, received.message["direction"]
        )
        params, memory, metrics = step(server, received._replace(message=moved))
        return params, memory, metrics | {"travel": length}

    def message(params: Params) -> dict[str, Any]:
        return {"direction": params, "travel": jnp.zeros(())}

    return with_server(start, work, update, message=message, **options)
