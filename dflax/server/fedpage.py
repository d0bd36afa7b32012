"""FedPAGE: now and then a full gradient of everyone, else recursive local steps of some."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.clients import map_clients, mean_metrics, select, weighted_mean
from dflax.data.dataset import Dataset
from dflax.federation import Assignment, Round
from dflax.local.large_batch import LargeBatch, large_batches, large_gradient
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.recursive import Estimate, recursive
from dflax.local.solver import solver
from dflax.local.subproblem import Subproblem
from dflax.models.averaged import warn_of_averaging


class PageServer(NamedTuple):
    """What the server carries.

    Attributes:
      params: x, the global model.
      estimate: the model before and the direction g that led to x.
    """

    params: Params
    estimate: Estimate


def fedpage(
    loss: Loss | Oracle,
    rate: float | Array,
    full: float | Array,
    *,
    server_rate: float | Array = 1.0,
    batch_size: int = 500,
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
      rate: of the local steps, > 0; traceable.
      full: probability of a round of full gradients, in [0, 1]; traceable.
      server_rate: > 0; traceable.
      batch_size: examples at a time where all are read, >= 1.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState` with `init(key, params)`; the model is
      `state.server.params`. A round of full gradients asks all n clients, whatever the participation.
      Reporting clients count the same; a round in which nobody reports leaves the server. Metrics:
      the loss's own over local steps (0 in rounds of full gradients and with K = 1),
      `clients_reporting`, `full` (whether it was one), `gradients` (examples differentiated).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhao et al., FedPAGE, arXiv 2108.04755.
    """
    oracle = gradient(loss)
    validation.real("rate", rate, low=0.0, low_open=True, scalar=True)
    validation.real("full", full, low=0.0, high=1.0, scalar=True)
    validation.real("server_rate", server_rate, low=0.0, low_open=True, scalar=True)
    validation.integer("batch_size", batch_size, low=1)
    if at_once is not None:
        validation.integer("at_once", at_once, low=1)
    solve = solver(recursive(oracle), optax.sgd(rate))

    def init(key: Key[Array, ""], params: Params) -> FederatedState:
        validation.typed_key("key", key)
        validation.model("params", params)
        warn_of_averaging(params)
        start = Estimate(params, jax.tree.map(jnp.zeros_like, params))
        return FederatedState(jnp.int32(0), PageServer(params, start), ())

    def whole(batch: LargeBatch, key: Array, params: Params, data: Dataset) -> Params:
        return large_gradient(oracle, params, batch, data, key)

    def local_work(
        assignment: Assignment, large: LargeBatch, server: PageServer, data: Dataset, number: Array
    ) -> tuple[Params, Metrics]:
        x, (before, g) = server
        new, old = (whole(large, assignment.key, point, data) for point in (x, before))
        direction = jax.tree.map(lambda g, b, a: g - b + a, g, old, new)
        y = jax.tree.map(lambda x, d: x - rate * d, x, direction)
        # The first of the K steps is done; a client that manages fewer stops earlier.
        rest = assignment._replace(
            minibatches=assignment.minibatches[1:], local_steps=assignment.local_steps - 1
        )
        y, metrics = _after(solve, y, rest, data, number, Estimate(x, direction), oracle)
        done = jnp.maximum(assignment.local_steps, 1) * rate
        return jax.tree.map(lambda x, y: (x - y) / done, x, y), metrics

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        server: PageServer = state.server
        coin_key, batch_key, full_key = jax.random.split(round.key, 3)
        equal = (round.weights > 0).astype(jnp.float32)
        large = large_batches(round, batch_key, batch_size=batch_size)
        everyones = large_batches(round._replace(cohort=None), batch_key, batch_size=batch_size)
        is_full = (state.round == 0) | jax.random.bernoulli(coin_key, full)
        given = (server, round.data, round.number)
        _, shapes = jax.eval_shape(
            lambda *stacked: map_clients(local_work, *stacked, shared=given, at_once=at_once),
            round.assignments,
            large,
        )

        def by_all() -> tuple[Params, Metrics, Array, Array]:
            keys = jax.random.split(full_key, round.clients)
            shared = (server.params, round.data)
            gradients = map_clients(whole, everyones, keys, shared=shared, at_once=at_once)
            metrics = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), shapes)
            count = jnp.float32(round.clients)
            return weighted_mean(gradients), metrics, count, everyones.examples.sum()

        def by_some() -> tuple[Params, Metrics, Array, Array]:
            directions, measured = map_clients(
                local_work, round.assignments, large, shared=given, at_once=at_once
            )
            zeros = jax.tree.map(jnp.zeros_like, directions)
            mean = weighted_mean(select(equal > 0, directions, zeros), equal)
            steps = round.assignments.local_steps
            metrics = mean_metrics(measured, equal * (steps > 1))
            minibatch = round.assignments.minibatches.shape[2]
            seen = 2 * (large.examples + minibatch * jnp.maximum(steps - 1, 0))
            return mean, metrics, equal.sum(), jnp.sum(seen * (equal > 0))

        direction, metrics, reporting, seen = jax.lax.cond(is_full, by_all, by_some)
        params = jax.tree.map(lambda x, g: x - server_rate * g, server.params, direction)
        moved = PageServer(params, Estimate(server.params, direction))
        metrics |= {
            "clients_reporting": reporting,
            "full": is_full.astype(jnp.float32),
            "gradients": seen.astype(jnp.float32),
        }
        return FederatedState(state.round + 1, select(reporting > 0, moved, server), ()), metrics

    return Algorithm(init, step)


def _after(
    solve,
    y: Params,
    rest: Assignment,
    data: Dataset,
    number: Array,
    memory: Estimate,
    oracle: Oracle,
) -> tuple[Params, Metrics]:
    """The steps after the first, if K leaves any."""
    if rest.minibatches.shape[0]:
        solution = solve(Subproblem(), y, rest, data, index=number, memory=memory)
        return solution.params, solution.metrics
    batch = jax.eval_shape(lambda: data.fetch(jnp.zeros(1, jnp.int32)))
    _, shapes = jax.eval_shape(oracle.evaluate, y, batch, rest.key)
    return y, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
