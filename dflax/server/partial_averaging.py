"""Partial averaging: some layers of the model are the clients' own and are never sent."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.clients import replicate
from dflax.data.dataset import Dataset
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.parts import Chooser, joined, name_of, part
from dflax.population import Assignment
from dflax.server.framework.averaging import descent
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.with_server import with_server


def normalization(path: str) -> bool:
    """Whether a leaf belongs to batch normalisation, scales, shifts and running statistics: FedBN."""
    validation.text("path", path)
    return "BatchNorm" in path or path.split("/")[0] == "batch_stats"


def layers(*names: str) -> Chooser:
    """Chooses the leaves whose path has one of these names in it: `layers("Dense_1")` for a head."""
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"names must be strings, at least one, got {validation.shown(names)}. For example "
            '"Dense_1".'
        )
    return lambda path: any(part in names for part in path.split("/"))


def partial_averaging(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    server_optimizer: Optimizer | None = None,
    *,
    local: Chooser,
    clients: int,
    **options: Any,
) -> Algorithm:
    """FedAvg of a part of the model; the rest stays with each client.

    With the model split into a shared part x and client i's own part z_i:

        (y_i, z_i) = K steps of `optimizer` on f_i from (x, z_i)              i in S, in parallel
        x = server_optimizer(x, -mean of y_i - x)                             z_i stays where it is

    With the layers of batch normalisation for z it is FedBN, with the last layers FedPer. Who does not
    take part keeps z_i bit for bit.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser for both parts, fresh in every round; or a function of
        the round's number that returns one. Of whole variables dicts, one from
        `dflax.models.with_statistics`.
      server_optimizer: the server's, for the shared part; default `optax.sgd(1.0)`.
      local: whether a leaf stays local, by its path, names joined by "/": `normalization` for FedBN,
        `layers("Dense_1")`, or any function of one's own.
      clients: n, the number of clients of the federation.
      **options: `aggregator`, `channel`, `at_once`, as for `dflax.server.fedavg`.

    Returns:
      An `Algorithm`. `state.server.params` is a whole model: the shared part, and the local one as it
      was at the start, for newcomers. `state.clients.memory` are the local parts, leaves `[n, ...]`,
      None for what is shared; `own_models(state)` puts them together. Metrics: the loss's own and
      `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument; at `init`, if all leaves are local, or none is.

    References:
      Li et al., FedBN, arXiv 2102.07623; Arivazhagan et al., Federated Learning with Personalization
      Layers (FedPer), arXiv 1912.00818.
    """
    fix = "It says of a path whether that leaf stays local."
    validation.function("local", local, fix, takes=1)
    validation.integer("clients", clients, low=1)
    solve = solver(loss, optimizer)
    begin, step = descent(server_optimizer)

    def shared(path: str) -> bool:
        return not local(path)

    def start(key: Key[Array, ""], params: Params) -> tuple[Any, Any]:
        own = part(params, local)
        for kept, fault in ((own, "none"), (part(params, shared), "all")):
            if not jax.tree.leaves(kept):
                paths = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
                raise ValueError(
                    f"local must choose some leaves and leave some to be shared, got {fault} "
                    f"of {validation.shown(paths)}."
                )
        memory, _ = begin(key, part(params, shared))
        return memory, replicate(own, clients)

    def work(
        assignment: Assignment, own: Any, server: Server, data: Dataset, index: Int[Array, ""]
    ) -> Report:
        model = joined(own, server.params)
        solution = solve(Subproblem(), model, assignment, data, index=index)
        change = jax.tree.map(jnp.subtract, solution.params, model)
        return Report(part(change, shared), part(solution.params, local), solution.metrics)

    def update(server: Server, received: Received) -> tuple[Params, PyTree[Array], Metrics]:
        reduced = server._replace(params=part(server.params, shared))
        params, memory, metrics = step(reduced, received)
        return joined(params, server.params), memory, metrics

    return with_server(
        start,
        work,
        update,
        message=lambda params: part(params, shared),
        clients=clients,
        **options,
    )


def own_models(state: FederatedState) -> Params:
    """Every client's whole model under partial averaging, leaves `[n, ...]`."""
    fix = "Pass the state of an algorithm from dflax.server.partial_averaging."
    validation.instance("state", state, FederatedState, fix)
    count = jax.tree.leaves(state.clients.memory)[0].shape[0]
    return joined(state.clients.memory, replicate(state.server.params, count))
