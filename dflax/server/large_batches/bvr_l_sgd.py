"""BVR-L-SGD: a variance-reduced direction of the cohort, then one client walks along it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.broadcast import without_memory
from dflax.channel.channel import Channel
from dflax.data.dataset import Dataset
from dflax.local.large_batch import LargeBatch, large_batches, large_gradient
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.recursive import Estimate, recursive
from dflax.local.solver import Optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.models.averaged import require_weights_alone
from dflax.population import Assignment, Round
from dflax.server.framework.asked import alone, either
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.with_server import with_server


class Task(NamedTuple):
    """What one client has to do; stacked over the cohort every leaf leads with m.

    Attributes:
      key: its typed key.
      batch: the examples at which it takes gradients.
    """

    key: Key[Array, ""]
    batch: LargeBatch


def bvr_l_sgd(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    period: int,
    *,
    examples: int | None = None,
    batch_size: int = 500,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """BVR-L-SGD: bias and variance reduced local SGD.

    For the cohort S of round t:

        t mod period = 0:  g = mean over S of large-batch gradients at x
        else:              g <- g + mean over S of grad f_i(x) - grad f_i(x_before) on K B examples
        then one client of S, drawn at random, from y = x with g_i = g:
            g_i <- g_i + grad f_i(y) - grad f_i(y_before),  y <- optimizer(y, g_i)        K times
        x <- y

    g is kept by the server, so that cohorts may change within a period; with the same clients in every
    round it is the mean of the estimates that the paper keeps at the clients. Differences are means
    over examples.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)` that respects `batch.mask`, or an `Oracle`.
      optimizer: of the local steps, an optax optimiser, fresh in every round; or a function of the
        round's number that returns one.
      period: rounds from one large batch to the next, >= 1.
      examples: of a large batch, each at most once; None: all that a client owns.
      batch_size: examples of a large batch at a time, >= 1.
      aggregator: of the gradients and their differences; default the mean.
      channel: between clients and server, both for the cohort's gradients and for the walk, so without
        memory; default perfect.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState` with `init(key, params)`; the model is
      `state.server.params`, x_before and g are `state.server.memory`. Reporting clients count the same;
      a round in which nobody reports leaves the server. If the walk is lost, g is kept and the model
      stays. Metrics: the loss's own over the local steps, `clients_reporting`, `full` (whether it was a
      round of large batches), `gradients` (examples differentiated), what the channel measures and,
      with the prefix "walk_", what it does of the walk.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Murata and Suzuki, Bias-Variance Reduced Local SGD for Less Heterogeneous Federated Learning,
      arXiv 2102.03198.
    """
    oracle = gradient(loss)
    solve = solver(recursive(oracle), optimizer)
    validation.integer("period", period, low=1)
    if examples is not None:
        validation.integer("examples", examples, low=1, fix="Or None for all of them.")
    validation.integer("batch_size", batch_size, low=1)

    def start(key: Key[Array, ""], params: Params) -> tuple[Estimate, tuple[()]]:
        require_weights_alone(params, "BVR-L-SGD")
        return Estimate(params, jax.tree.map(jnp.zeros_like, params)), ()

    def large(round: Round, key: Key[Array, ""]) -> Task:
        batches = large_batches(round, key, examples=examples, batch_size=batch_size)
        return Task(round.assignments.key, batches)

    def small(round: Round, key: Key[Array, ""]) -> Task:
        minibatches = round.assignments.minibatches
        count = jnp.full(len(minibatches), minibatches[0].size, jnp.int32)
        return Task(round.assignments.key, LargeBatch(minibatches, count))

    def whole(task: Task, params: Params, data: Dataset) -> Params:
        return large_gradient(oracle, params, task.batch, data, task.key)

    def fresh(task: Task, own: tuple[()], server: Server, data: Dataset, index: Array) -> Report:
        seen = whole(task, server.params, data)
        return Report(seen, own, {}, totals={"gradients": task.batch.examples})

    def moved(task: Task, own: tuple[()], server: Server, data: Dataset, index: Array) -> Report:
        new, old = (whole(task, x, data) for x in (server.params, server.memory.params))
        seen = jax.tree.map(jnp.subtract, new, old)
        return Report(seen, own, {}, totals={"gradients": 2 * task.batch.examples})

    def walk(
        assignment: Assignment, own: tuple[()], server: Server, data: Dataset, index: Array
    ) -> Report:
        solution = solve(
            Subproblem(), server.params, assignment, data, index=index, memory=server.memory
        )
        change = jax.tree.map(jnp.subtract, solution.params, server.params)
        seen = 2 * assignment.local_steps * assignment.minibatches.shape[1]
        return Report(change, own, solution.metrics, totals={"gradients": seen})

    def renew(server: Server, received: Received) -> tuple[Params, Estimate, Metrics]:
        return server.params, Estimate(server.params, received.message), {}

    def correct(server: Server, received: Received) -> tuple[Params, Estimate, Metrics]:
        g = jax.tree.map(jnp.add, server.memory.direction, received.message)
        return server.params, Estimate(server.params, g), {}

    def go(server: Server, received: Received) -> tuple[Params, Estimate, Metrics]:
        return jax.tree.map(jnp.add, server.params, received.message), server.memory, {}

    def rounds(work: Any, update: Any, **options: Any) -> Algorithm:
        link = without_memory("channel", channel)
        return with_server(
            start, work, update, channel=link, equal=True, at_once=at_once, **options
        )

    renewing = rounds(fresh, renew, assign=large, aggregator=aggregator)
    correcting = rounds(moved, correct, assign=small, aggregator=aggregator)
    walking = rounds(walk, go)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        cohort_key, walker_key, walk_key = jax.random.split(round.key, 3)
        together = round._replace(key=cohort_key)
        # The very first round has no direction to correct, whatever its number.
        is_full = (round.number % period == 0) | (state.round == 0)
        middle, found = either(
            is_full,
            lambda: renewing.step(state, together),
            lambda: correcting.step(state, together),
        )
        # Without a direction of this round nobody walks.
        weights = (round.weights > 0) * (found["clients_reporting"] > 0).astype(jnp.float32)
        walker = jax.random.categorical(walker_key, jnp.log(weights))
        one = alone(round._replace(weights=weights), walker, walk_key)
        after, metrics = walking.step(middle, one)
        gradients = found["gradients"] + metrics.pop("gradients")
        metrics = {f"walk_{k}" if k in found else k: v for k, v in metrics.items()}
        metrics |= found | {"gradients": gradients, "full": is_full.astype(jnp.float32)}
        return after._replace(round=state.round + 1), metrics

    return Algorithm(walking.init, step)
