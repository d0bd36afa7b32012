"""Ditto: a personal model for every client, held near the common one."""

from typing import NamedTuple

from jaxtyping import Array

from dflax import validation
from dflax.algorithm import Algorithm, Params
from dflax.clients import replicate
from dflax.local import Loss, Optimizer, Oracle, Subproblem, solver
from dflax.server import descent, local_change, with_server


class Personal(NamedTuple):
    """A client's memory.

    Attributes:
      params: its personal model v_i.
    """

    params: Params


def ditto(
    loss: Loss | Oracle, optimizer: Optimizer, clients: int, pull: float | Array = 0.1, **options
) -> Algorithm:
    """FedAvg, and beside it personal models that are trained towards it.

        y_i = K steps of `optimizer` on f_i from x                            i in S, in parallel
        v_i = K steps of `optimizer` on f_i + (pull / 2) |v - x|^2 from v_i   on the same minibatches
        x   = mean of y_i

    The personal models change nothing of the common one. pull = 0 trains each client alone.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: an optax optimiser; or a function of the round's number that returns one.
      clients: n, the number of clients of the federation.
      pull: lambda >= 0, in the loss's units over the model's squared; traceable.
      **options: `aggregator`, `channel`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm` on a `FederatedState`; the common model is `state.server.params`, the personal
      ones `state.clients.params`, leaves `[n, ...]`. Metrics are those of the common model's steps.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, arXiv 2012.04221.
    """
    validation.integer("clients", clients, low=1)
    validation.real("pull", pull, low=0.0, scalar=True)
    change, solve = local_change(loss, optimizer), solver(loss, optimizer)
    begin, update = descent()

    def start(key, params):
        return begin(key, params)[0], Personal(replicate(params, clients))

    def work(assignment, own, server, data, index):
        report = change(assignment, (), server, data, index)
        towards = Subproblem(pull=pull, anchor=server.params)
        personal = solve(towards, own.params, assignment, data, index=index)
        return report._replace(memory=Personal(personal.params))

    return with_server(start, work, update, clients=clients, **options)
