"""FedAMD: some participants refresh large-batch gradients, the others move along their mean."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.broadcast import without_memory
from dflax.channel.channel import Channel
from dflax.channel.compression import numbers
from dflax.clients import select, weighted_mean
from dflax.data.dataset import Dataset
from dflax.local.large_batch import LargeBatch, large_batches, large_gradient
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.recursive import Estimate, recursive
from dflax.local.solver import Optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.models.averaged import require_weights_alone
from dflax.population import Assignment, Round
from dflax.server.framework.protocol import Arrived, Received, Report, Server
from dflax.server.framework.rates import Rate, check_rate, rate_at
from dflax.server.framework.with_server import with_server
from dflax.server.large_batches.anchors import Anchors


class Direction(NamedTuple):
    """What the server remembers.

    Attributes:
      direction: gbar, the mean over all n clients of their cached gradients, like the model.
    """

    direction: Params


class Cached(NamedTuple):
    """What is kept per client.

    Attributes:
      gradient: v_i, the large-batch gradient each sent last, leaves `[n, ...]`.
      taken: `[n]` int32, the round in which it was; -1 for one from before the first.
    """

    gradient: Params
    taken: Int[Array, " n"]


class Task(NamedTuple):
    """What one participant has to do; stacked over the cohort every leaf leads with m.

    Attributes:
      assignment: its minibatches, for a miner.
      large: its large batch, for an anchor.
      anchors: `[]` whether it is one.
    """

    assignment: Assignment
    large: LargeBatch
    anchors: Bool[Array, ""]


def fedamd(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    anchors: Anchors,
    *,
    server_rate: Rate = 1.0,
    examples: int | None = None,
    batch_size: int = 500,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    clients: int | None = None,
    at_once: int | None = 1,
) -> Algorithm:
    """FedAMD: anchors and miners among the participants of a round.

    With gbar the mean over all n clients of cached gradients v_i, each member of the cohort S is an
    anchor by the law `anchors`, else a miner:

        anchor:  v_i <- (1/B) sum over a large batch of grad f_i(x; example)
        miner:   y = y_before = x, g = gbar; K times, on minibatches:
                     g <- g - grad f_i(y_before) + grad f_i(y),  y_before <- y,  y <- optimizer(y, g)
                 sends x - y
        server:  x <- x - server_rate (mean over miners of x - y),  gbar anew for the next round

    A round without miners leaves x. A miner's first step goes along gbar whatever its minibatch. A
    client is an anchor every n / (p m) rounds. In between its part of gbar is old, while the model
    moves by up to rate K n / (p m). Where that path is long, the iteration collapses (in the study
    `fedamd` a perceptron does at 10 and holds at 2, softmax regression holds at 10). `anchors.periodic`
    is the safest law. The authors' option to send (x - y) / K is a `server_rate` divided by K.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)` that respects `batch.mask`, or an `Oracle`.
      optimizer: of the miners, an optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      anchors: `dflax.server.large_batches.anchors.constant(p)`, `periodic(tau)` or `decaying()`.
      server_rate: > 0; traceable; or a function of the round's number that returns one.
      examples: of an anchor's large batch, each at most once; None: all that the client owns.
      batch_size: an anchor's examples at a time, >= 1.
      channel: between clients and server, without memory, for messages are of two kinds; default
        perfect.
      aggregator: of the miners' changes, and of the anchors' news of their gradients; default the mean.
      clients: n, the number of clients of the federation; None: as many as the gradients given to
        `init`.
      at_once: participants that one device computes at the same time, see `dflax.map_clients`. With 1
        each does its own role's work and no other, and a round costs what its members cost; with more,
        both roles' work is done for each and one result taken, which pays on accelerators and under
        `jax.vmap`. Rounds of one role (`periodic`) cost that role's work in any case.

    Returns:
      An `Algorithm` on a `FederatedState` with `init(key, params, gradients)`: the clients' gradients
      at `params` `[n, ...]`, from `dflax.local.client_gradients`. gbar is
      `state.server.memory.direction`, the v_i and the rounds in which they were taken are
      `state.clients.memory`. Reporting clients count the same. Metrics: the loss's own over miners (NaN
      without any), `clients_reporting`, `anchors`, `miners`, `staleness` (mean age of v_i in rounds),
      `gradients` (examples differentiated) and `numbers_up`, `numbers_down`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Wu et al., Anchor Sampling for Federated Learning with Partial Client Participation,
      arXiv 2206.05891.
    """
    oracle = gradient(loss)
    solve = solver(recursive(oracle), optimizer)
    validation.instance(
        "anchors", anchors, Anchors, "For example dflax.server.large_batches.anchors.constant(0.5)."
    )
    check_rate("server_rate", server_rate, low=0.0, low_open=True)
    if examples is not None:
        validation.integer("examples", examples, low=1, fix="Or None for all of them.")
    validation.integer("batch_size", batch_size, low=1)
    validation.at_once(at_once)

    def start(key: Key[Array, ""], params: Params, gradients: Params) -> tuple[Direction, Cached]:
        require_weights_alone(params, "FedAMD")
        count = check_gradients(params, gradients)
        taken = jnp.full(count, -1, jnp.int32)
        return Direction(weighted_mean(gradients)), Cached(gradients, taken)

    def assign(round: Round, key: Key[Array, ""]) -> Task:
        role_key, batch_key = jax.random.split(key)
        chance = anchors.probability(round.number)
        is_anchor = jax.random.bernoulli(role_key, chance, round.weights.shape)
        large = large_batches(round, batch_key, examples=examples, batch_size=batch_size)
        return Task(round.assignments, large, is_anchor)

    def mine(task: Task, server: Server, data: Dataset, index: Array) -> tuple[Params, Metrics]:
        memory = Estimate(server.params, server.memory.direction)
        solution = solve(
            Subproblem(), server.params, task.assignment, data, index=index, memory=memory
        )
        return jax.tree.map(jnp.subtract, solution.params, server.params), solution.metrics

    def refresh(task: Task, server: Server, data: Dataset, index: Array) -> tuple[Params, Metrics]:
        seen = large_gradient(oracle, server.params, task.large, data, task.assignment.key)
        _, shapes = jax.eval_shape(mine, task, server, data, index)
        return seen, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def work(task: Task, own: Cached, server: Server, data: Dataset, index: Array) -> Report:
        arguments = (task, server, data, index)
        if anchors.shared:
            # The same for all, so that also under vmap only one role's work is done.
            whole_round = anchors.probability(index) > 0.5
            message, metrics = jax.lax.cond(whole_round, refresh, mine, *arguments)
        elif at_once == 1:
            message, metrics = jax.lax.cond(task.anchors, refresh, mine, *arguments)
        else:
            message, metrics = select(task.anchors, refresh(*arguments), mine(*arguments))
        steps, width = task.assignment.local_steps, task.assignment.minibatches.shape[1]
        size = numbers(message)
        read = jnp.where(task.anchors, task.large.examples, 2 * width * steps)
        return Report(
            message,
            own,
            metrics,
            totals={
                "gradients": read,
                "numbers_up": jnp.float32(size),
                # A miner is sent the model and gbar, an anchor the model.
                "numbers_down": jnp.where(task.anchors, 1.0, 2.0) * size,
            },
            measured=~task.anchors & (steps > 0),
            kinds={"anchors": task.anchors, "miners": ~task.anchors},
        )

    def news(own: Cached, arrived: Arrived) -> Params:
        old = jax.tree.map(jnp.subtract, arrived.message, own.gradient)
        return select(arrived.kinds["anchors"], old, arrived.message)

    def update(server: Server, received: Received) -> tuple[Params, Direction, Metrics]:
        rate, share = rate_at(server_rate, received.number), received.share["anchors"]

        def along(factor: Any, start: Params, step: Params) -> Params:
            return jax.tree.map(lambda a, d: a + jnp.asarray(factor, a.dtype) * d, start, step)

        params = along(rate, server.params, received.message["miners"])
        direction = along(share, server.memory.direction, received.message["anchors"])
        return params, Direction(direction), {}

    def cache(own: Cached, arrived: Arrived, server: Server, index: Array) -> Cached:
        return select(arrived.kinds["anchors"], Cached(arrived.message, index), own)

    rounds = with_server(
        start,
        work,
        update,
        aggregator=aggregator,
        channel=without_memory("channel", channel),
        clients=clients,
        equal=True,
        at_once=None if anchors.shared and at_once == 1 else at_once,
        kinds=("anchors", "miners"),
        assign=assign,
        read=news,
        receive=cache,
    )

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        state, metrics = rounds.step(state, round)
        ages = (round.number - state.clients.memory.taken).astype(jnp.float32)
        return state, metrics | {"staleness": ages.mean()}

    return Algorithm(rounds.init, step)


def check_gradients(params: Params, gradients: Params) -> int:
    """Refuse gradients that are not the clients' of this model; returns n."""
    wanted = (
        "The clients' gradients at params: dflax.local.client_gradients(loss, federation, params)."
    )
    given: Any = jax.tree.structure(gradients)
    if given != jax.tree.structure(params):
        raise ValueError(
            f"gradients must have the structure of params, {jax.tree.structure(params)}, got {given}. "
            f"{wanted}"
        )
    count = validation.leading_axis("gradients", gradients)
    for (path, leaf), one in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(params), strict=True
    ):
        if jnp.shape(leaf)[1:] != jnp.shape(one):
            raise ValueError(
                f"gradients{jax.tree_util.keystr(path)} must have shape (n, *{jnp.shape(one)}), got "
                f"{jnp.shape(leaf)}. {wanted}"
            )
    return count
