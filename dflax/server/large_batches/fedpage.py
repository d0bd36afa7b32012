"""FedPAGE: now and then a full gradient of everyone, else recursive local steps of some."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel
from dflax.data.dataset import Dataset
from dflax.local.large_batch import LargeBatch, large_batches, large_gradient
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.recursive import Estimate, recursive
from dflax.local.solver import solver
from dflax.local.subproblem import Subproblem
from dflax.models.averaged import require_weights_alone
from dflax.population import Assignment, Round
from dflax.server.framework.asked import either, everyone
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.rates import Rate, check_rate, rate_at
from dflax.server.framework.with_server import with_server


class Task(NamedTuple):
    """What one client has to do; stacked over the cohort every leaf leads with m.

    Attributes:
      assignment: its minibatches.
      large: all of its examples.
    """

    assignment: Assignment
    large: LargeBatch


def fedpage(
    loss: Loss | Oracle,
    rate: Rate,
    full: float | Array,
    *,
    server_rate: Rate = 1.0,
    batch_size: int = 500,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    clients: int | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """FedPAGE: recursive local steps from the last direction, renewed by full gradients.

    In the first round and in others with probability `full`:

        g = (1/n) sum over all n clients of grad f_i(x)

    else, for the cohort S, with g and x_before of the last round:

        g_i = g + grad f_i(x) - grad f_i(x_before),  y = x - rate g_i         on all of client i's data
        K - 1 times, on minibatches:
            g_i <- g_i + grad f_i(y) - grad f_i(y_before),  y <- y - rate g_i
        g = mean over S of (x - y_K) / (K rate)

    and in both x <- x - server_rate g. `server_rate` is a gradient's: to move as far as K local steps
    do it is K rate.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)` that respects `batch.mask`, or an `Oracle`.
      rate: of the local steps, > 0; traceable; or a function of the round's number that returns one.
      full: probability of a round of full gradients, in [0, 1]; traceable.
      server_rate: > 0; traceable; or a function of the round's number as well.
      batch_size: examples at a time where all are read, >= 1.
      aggregator: of the gradients; default the mean.
      channel: between clients and server; default perfect. One with memory needs `clients`.
      clients: n, the number of clients of the federation; only read when the channel has memory.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState` with `init(key, params)`; the model is
      `state.server.params`, x_before and g are `state.server.memory`. A round of full gradients asks
      all n clients, whatever the participation: those who were not invited answer, those who are known
      to be absent do not. Reporting clients count the same; a round in which nobody reports leaves the
      server. Metrics: the loss's own over local steps (NaN in rounds of full gradients and with K = 1),
      `clients_reporting`, `full` (whether it was one), `gradients` (examples differentiated).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhao et al., FedPAGE, arXiv 2108.04755.
    """
    oracle = gradient(loss)
    check_rate("rate", rate, low=0.0, low_open=True)
    validation.real("full", full, low=0.0, high=1.0, scalar=True)
    check_rate("server_rate", server_rate, low=0.0, low_open=True)
    validation.integer("batch_size", batch_size, low=1)
    solve = solver(recursive(oracle), lambda number: optax.sgd(rate_at(rate, number)))

    def start(key: Key[Array, ""], params: Params) -> tuple[Estimate, tuple[()]]:
        require_weights_alone(params, "FedPAGE")
        return Estimate(params, jax.tree.map(jnp.zeros_like, params)), ()

    def assign(round: Round, key: Key[Array, ""]) -> Task:
        return Task(round.assignments, large_batches(round, key, batch_size=batch_size))

    def whole(task: Task, params: Params, data: Dataset) -> Params:
        return large_gradient(oracle, params, task.large, data, task.assignment.key)

    def full_gradient(
        task: Task, own: tuple[()], server: Server, data: Dataset, index: Array
    ) -> Report:
        seen = whole(task, server.params, data)
        return Report(seen, own, {}, totals={"gradients": task.large.examples})

    def local_steps(
        task: Task, own: tuple[()], server: Server, data: Dataset, index: Array
    ) -> Report:
        x, (before, g), assignment = server.params, server.memory, task.assignment
        new, old = (whole(task, point, data) for point in (x, before))
        direction = jax.tree.map(lambda g, b, a: g - b + a, g, old, new)
        eta = rate_at(rate, index)
        y = _along(-eta, x, direction)
        # The first of the K steps is done; a client that manages fewer stops earlier.
        rest = assignment._replace(
            minibatches=assignment.minibatches[1:], local_steps=assignment.local_steps - 1
        )
        metrics: Metrics = {}
        if rest.minibatches.shape[0]:
            memory = Estimate(x, direction)
            solution = solve(Subproblem(), y, rest, data, index=index, memory=memory)
            y, metrics = solution.params, solution.metrics
        done = jnp.maximum(assignment.local_steps, 1) * eta
        mean = jax.tree.map(lambda x, y: (x - y) / jnp.asarray(done, x.dtype), x, y)
        width = assignment.minibatches.shape[1]
        seen = 2 * (task.large.examples + width * jnp.maximum(rest.local_steps, 0))
        return Report(mean, own, metrics, totals={"gradients": seen}, measured=rest.local_steps > 0)

    def update(server: Server, received: Received) -> tuple[Params, Estimate, Metrics]:
        g = received.message
        params = _along(-rate_at(server_rate, received.number), server.params, g)
        return params, Estimate(server.params, g), {}

    def rounds(work: Any) -> Algorithm:
        return with_server(
            start,
            work,
            update,
            aggregator=aggregator,
            channel=channel,
            clients=clients,
            equal=True,
            at_once=at_once,
            assign=assign,
        )

    renewing, walking = rounds(full_gradient), rounds(local_steps)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        coin_key, some_key, all_key = jax.random.split(round.key, 3)
        is_full = (state.round == 0) | jax.random.bernoulli(coin_key, full)
        after, metrics = either(
            is_full,
            lambda: renewing.step(state, everyone(round, all_key)),
            lambda: walking.step(state, round._replace(key=some_key)),
        )
        return after, metrics | {"full": is_full.astype(jnp.float32)}

    return Algorithm(walking.init, step)


def _along(factor: Any, start: Params, step: Params) -> Params:
    return jax.tree.map(lambda a, d: a + jnp.asarray(factor, a.dtype) * d, start, step)
