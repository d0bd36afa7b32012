"""FedAvg's three lines: local work around the model, the mean change, a step of the server along it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.clients import replicate
from dflax.data.dataset import Dataset
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, check_no_value, check_optimizer, optimizer_at, solver
from dflax.local.subproblem import Subproblem
from dflax.population import Assignment
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.with_server import with_server

Work = Callable[[Assignment, Any, Server, Dataset, Int[Array, ""]], Report]
Start = Callable[[Key[Array, ""], Params], tuple[PyTree[Array], tuple[()]]]
Update = Callable[[Server, Received], tuple[Params, PyTree[Array], Metrics]]


class Kept(NamedTuple):
    """What a client keeps that remembers its last local model.

    Attributes:
      params: the model that it ended its last round with; at first that of the server.
      optimizer: the optimiser's state; () for one that is fresh in every round.
    """

    params: Params
    optimizer: PyTree[Array] = ()


def averaging(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    server_optimizer: Optimizer | None,
    problem: Callable[[Params], Subproblem] = lambda params: Subproblem(),
    *,
    keep_optimizer: bool = False,
    keep_model: bool = False,
    clients: int | None = None,
    **options: Any,
) -> Algorithm:
    """A method without memory on the clients, whose server steps along the mean change.

        y_i = K steps of `optimizer` on problem(x)                            i in S, in parallel
        x   = server_optimizer(x, -mean of y_i - x)                           SGD(1): the mean of y_i

    Args:
      loss: a loss, or an `Oracle`.
      optimizer: the clients' optax optimiser; or a function of the round's number that returns one.
      server_optimizer: the server's; None is `optax.sgd(1.0)`.
      problem: from the server's model to what the clients minimise.
      keep_optimizer: whether each client keeps its optimiser's state from round to round; needs
        `clients`. Else it is fresh in every round.
      keep_model: whether each client keeps its last local model, as `state.clients.params`; needs
        `clients`.
      clients: n.
      **options: of `with_server`.

    Returns:
      An `Algorithm`; the server's optimiser is `state.server.memory`.
    """
    kept = {"keep_optimizer": keep_optimizer, "keep_model": keep_model}
    work = local_change(loss, optimizer, problem, **kept)
    begin, update = descent(server_optimizer)
    if keep_optimizer or keep_model:
        what = "an optimiser's state" if keep_optimizer else "a model"
        validation.integer("clients", clients, low=1, fix=f"Each of them keeps {what}.")

    def start(key: Key[Array, ""], params: Params) -> tuple[PyTree[Array], PyTree[Array]]:
        memory, _ = begin(key, params)
        return memory, replicate(memory_of(optimizer, params, **kept), clients or 1)

    return with_server(start, work, update, clients=clients, **options)


def local_change(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    problem: Callable[[Params], Subproblem] = lambda params: Subproblem(),
    *,
    keep_optimizer: bool = False,
    keep_model: bool = False,
) -> Work:
    """A client's work: `message = y - x`, with y from K local steps that start at the server's x.

    Args:
      loss: a loss, or an `Oracle`.
      optimizer: an optax optimiser; or a function of the round's number that returns one.
      keep_optimizer: whether the client's memory is its optimiser's state; else it has none, and the
        optimiser is fresh in every round.
      keep_model: whether it remembers its last local model as well; the memory is then `Kept`.
      problem: from the server's model to what the clients minimise.

    Raises:
      TypeError: naming the argument.
    """
    validation.flag("keep_optimizer", keep_optimizer)
    validation.flag("keep_model", keep_model)
    solve = solver(loss, optimizer)
    validation.function("problem", problem, "From the model to a Subproblem.", takes=1)

    def work(
        assignment: Assignment, own: Any, server: Server, data: Dataset, index: Int[Array, ""]
    ) -> Report:
        state = own.optimizer if keep_model else own
        state = state if keep_optimizer else None
        solution = solve(
            problem(server.params),
            server.params,
            assignment,
            data,
            index=index,
            optimizer_state=state,
        )
        change = jax.tree.map(jnp.subtract, solution.params, server.params)
        memory = solution.optimizer if keep_optimizer else own
        if keep_model:
            memory = Kept(solution.params, solution.optimizer if keep_optimizer else ())
        return Report(change, memory, solution.metrics)

    return work


def memory_of(
    optimizer: Optimizer, params: Params, *, keep_optimizer: bool, keep_model: bool
) -> Any:
    """What one client remembers before its first round."""
    own = optimizer_at(optimizer, jnp.int32(0)).init(params) if keep_optimizer else ()
    return Kept(params, own) if keep_model else own


def descent(server_optimizer: Optimizer | None = None) -> tuple[Start, Update]:
    """The server's start and update: `x = server_optimizer(x, -message)`, its state the memory.

    Args:
      server_optimizer: an optax optimiser, or a function of the round's number that returns one;
        default `optax.sgd(1.0)`, which adds the message.
    """
    made = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check_optimizer("server_optimizer", made)
    check_no_value("server_optimizer", made)

    def start(key: Key[Array, ""], params: Params) -> tuple[PyTree[Array], tuple[()]]:
        return optimizer_at(made, jnp.int32(0)).init(params), ()

    def update(server: Server, received: Received) -> tuple[Params, PyTree[Array], Metrics]:
        slope = jax.tree.map(jnp.negative, received.message)
        updates, memory = optimizer_at(made, received.number).update(
            slope, server.memory, server.params
        )
        return optax.apply_updates(server.params, updates), memory, {}

    return start, update
