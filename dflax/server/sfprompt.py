"""SFPrompt: soft prompts and a classifier, tuned through a large model that a server keeps."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel
from dflax.data.dataset import Batch, Dataset
from dflax.local.large_batch import LargeBatch, large_batches
from dflax.local.oracle import Loss, Oracle
from dflax.local.pruning import Filled, dealt, el2n, kept_of, largest_scores
from dflax.local.solver import Optimizer, check_optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.models.split.split import Frozen, Split, Trained, split_gradient
from dflax.population import Assignment, Round
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.with_server import with_server


class Pruned(enum.Enum):
    """With which prompts and tail a client scores its examples.

    Attributes:
      BEFORE: those of the server.
      AFTER: its own, after the local loss.
    """

    BEFORE = "before"
    AFTER = "after"


class Task(NamedTuple):
    """What a client has to do in a round.

    Attributes:
      assignment: minibatches of the local loss.
      owned: all of its examples.
      local_steps: whether it works at all, read by the framework.
    """

    assignment: Assignment
    owned: LargeBatch
    local_steps: Int[Array, ""]


def sfprompt(
    split: Split,
    loss: Callable[[Any], Loss],
    optimizer: Optimizer,
    *,
    local_loss: bool = True,
    local_optimizer: Optimizer | None = None,
    keep: float | Float[Array, ""] = 0.5,
    prune_when: Pruned = Pruned.AFTER,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    clients: int | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """SFPrompt: clients tune soft prompts p and a tail t of a model whose body only the server holds.

    A round, for a cohort S with weights w_i, every client from the server's (p, t):

        K steps on the local loss, alone:        loss(tail(head(x; p)), y)            no body
        scores of its n examples:                e = |softmax(tail(head(x; p))) - onehot(y)|_2
        one pass over the floor(keep n) largest: loss(tail(body(head(x; p))), y)      over both cuts
        (p, t) = sum_i w_i (p_i, t_i) / sum_i w_i

    Head and body stay as they are; they are part of the server's memory. K and the minibatches of the
    local loss are the federation's, so `local_epochs=U` are the paper's U epochs. Minibatches of the
    pass have the federation's size, and a random order. With `keep=1.0` nothing is scored. Without
    prompts, local loss and pruning it is FedAvg of the tail on frozen features.

    The local loss trains a tail on inputs it will not have in the whole model. It may do harm: watch
    "loss", which is the whole model's. Where a body's activations do not fit the memory,
    `split._replace(body=jax.checkpoint(split.body))` computes them twice.

    Args:
      split: the model in parts, for example `dflax.models.split_transformer(model, prompts=4)`.
      loss: from a model to a loss that respects `batch.mask`: `dflax.losses.classification`.
      optimizer: optax, of the pass over the cuts, fresh in every round; or a function of the round's
        number that returns one.
      local_loss: whether there are steps on the local loss; False is the paper's U = 0.
      local_optimizer: of the local loss, fresh as well; default `optimizer`.
      keep: gamma in (0, 1], the share of examples that is kept; at least one is. Traceable; the number
        of steps is then that of `keep=1`, and those without examples change nothing.
      prune_when: whether examples are scored before or after the local loss.
      aggregator: default the weighted mean.
      channel: between clients and server, of changes of (p, t); default perfect. One with memory needs
        `clients`.
      clients: n, the number of clients of the federation; only read when the channel has memory.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` with `init(key, params)`, params as `split.divide` takes them; the key draws the
      prompts. `state.server.params` is `Trained`, `state.server.memory` is `Frozen`, and `split.apply`
      takes the pair of them as `tuned_parts(state)` gives it. Metrics: the loss's own of the pass, with
      "local_" before them of the local loss; "el2n_kept" and "el2n_dropped", mean scores (where some
      are scored); "examples_local", "examples_scored" and "examples_kept", passes of examples through
      the clients' parts, sums over those who send: with `dflax.models.split_cost` they tell numbers
      sent and products. `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument; from `step`, clients that own a law over classes in
        place of examples.

    References:
      Cao, Zhu and Gong, SFPrompt: Communication-Efficient Split Federated Fine-Tuning for Large
      Pre-Trained Models over Resource-Limited Devices, arXiv 2407.17533.
    """
    validation.instance("split", split, Split, "Make one with dflax.models.split_transformer.")
    validation.function("loss", loss, "For example dflax.losses.classification.", takes=1)
    check_optimizer("optimizer", optimizer)
    if local_optimizer is not None:
        check_optimizer("local_optimizer", local_optimizer)
    validation.flag("local_loss", local_loss)
    validation.real("keep", keep, low=0.0, low_open=True, high=1.0, scalar=True)
    validation.instance("prune_when", prune_when, Pruned, "For example Pruned.AFTER.")
    alone = optimizer if local_optimizer is None else local_optimizer
    prunes = validation.is_traced(keep) or float(keep) < 1.0

    def assign(round: Round, key: Key[Array, ""]) -> Task:
        assignments = round.assignments
        return Task(assignments, large_batches(round, key), assignments.local_steps)

    def work(
        task: Task, own: tuple[()], server: Server, data: Dataset, index: Int[Array, ""]
    ) -> Report:
        frozen, received = server.memory, server.params
        tuned, metrics, totals = received, {}, {}
        if local_loss:
            # The pass over the cuts folds other numbers into the client's key.
            local = loss(lambda trained, inputs: split.shortcut((frozen, trained), inputs))
            solution = solver(local, alone)(Subproblem(), tuned, task.assignment, data, index=index)
            tuned = solution.params
            metrics = {f"local_{name}": value for name, value in solution.metrics.items()}
            batch_size = task.assignment.minibatches.shape[1]
            totals["examples_local"] = task.local_steps * batch_size
        kept, scored = task.owned.examples, {}
        mask = _present(task.owned)
        if prunes:
            at = tuned if prune_when is Pruned.AFTER else received
            scores = _scores(split, (frozen, at), task.owned, data)
            kept = kept_of(keep, task.owned.examples)
            chosen = largest_scores(scores, mask, kept)
            scored = {
                "el2n_kept": _mean(scores, chosen),
                "el2n_dropped": _mean(scores, mask & ~chosen),
            }
            totals["examples_scored"], mask = task.owned.examples, chosen
        kept = jnp.where(task.local_steps > 0, kept, 0)
        crossing = _minibatches(task, mask, kept, keep)
        oracle = _over_the_cuts(split, loss, frozen)
        solution = solver(oracle, optimizer)(
            Subproblem(), tuned, crossing, _filled(data), index=index
        )
        change = jax.tree.map(jnp.subtract, solution.params, received)
        totals["examples_kept"] = kept
        return Report(change, own, solution.metrics | metrics | scored, totals=totals)

    def update(server: Server, received: Received) -> tuple[Params, Frozen, Metrics]:
        params = jax.tree.map(jnp.add, server.params, received.message)
        return params, server.memory, {}

    method = with_server(
        lambda key, params, frozen: (frozen, ()),
        work,
        update,
        aggregator=aggregator,
        channel=channel,
        clients=clients,
        at_once=at_once,
        assign=assign,
    )

    def init(key: Key[Array, ""], params: Params) -> FederatedState:
        validation.typed_key("key", key)
        prompt_key, own_key = jax.random.split(key)
        frozen, trained = split.divide(params, prompt_key)
        return method.init(own_key, trained, frozen)

    return Algorithm(init, method.step)


def tuned_parts(state: FederatedState) -> tuple[Frozen, Trained]:
    """The whole model of a state of `sfprompt`, as `Split.apply` takes it."""
    fix = "Pass the state of an algorithm from dflax.server.sfprompt."
    validation.instance("state", state, FederatedState, fix)
    return state.server.memory, state.server.params


def _present(owned: LargeBatch) -> Bool[Array, " P"]:
    return jnp.arange(owned.minibatches.size) < owned.examples


def _scores(
    split: Split, params: tuple[Frozen, Trained], owned: LargeBatch, data: Dataset
) -> Float[Array, " P"]:
    """EL2N of a client's examples, a piece at a time, by head and tail alone."""

    def piece(minibatch: Int[Array, " B"]) -> Float[Array, " B"]:
        batch = data.fetch(minibatch)
        return el2n(split.shortcut(params, batch.inputs), batch.labels)

    return jax.lax.map(piece, owned.minibatches).reshape(-1)


def _minibatches(
    task: Task, mask: Bool[Array, " P"], kept: Int[Array, ""], keep: Any
) -> Assignment:
    """The pass over the kept examples as an assignment."""
    width = task.assignment.minibatches.shape[1]
    examples = task.owned.minibatches.reshape(-1)
    # As many steps as the largest client may need; of a share that is not known yet, all.
    most = examples.size if validation.is_traced(keep) else kept_of(keep, examples.size)
    order_key, key = jax.random.split(jax.random.fold_in(task.assignment.key, 0xFFFFFFFF))
    listed = dealt(examples, mask, order_key, -(-most // width), width)
    steps = (kept + width - 1) // width
    return task.assignment._replace(minibatches=listed, local_steps=steps, key=key)


def _over_the_cuts(split: Split, loss: Callable[[Any], Loss], frozen: Frozen) -> Oracle:
    """How a client sees the whole model: by what travels over the cuts."""
    of_tail = loss(split.tail)

    def evaluate(trained: Trained, batch: Batch, key: Key[Array, ""]) -> tuple[Trained, Metrics]:
        def loss_of(tail: Params, activations: Array) -> tuple[Array, Metrics]:
            return of_tail(tail, batch._replace(inputs=activations), key)

        gradient, metrics, _ = split_gradient(split, loss_of, (frozen, trained), batch.inputs)
        return gradient, metrics

    return Oracle(evaluate)


def _filled(data: Dataset) -> Any:
    return Filled(data)


def _mean(values: Float[Array, " P"], chosen: Bool[Array, " P"]) -> Float[Array, ""]:
    """The mean of the chosen ones, 0 of none."""
    return jnp.sum(jnp.where(chosen, values, 0.0)) / jnp.maximum(jnp.sum(chosen), 1)
