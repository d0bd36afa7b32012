"""BVR-L-SGD: a variance-reduced direction of the cohort, then one client walks along it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.clients import map_clients, mean_metrics, select, weighted_mean
from dflax.data.dataset import Dataset
from dflax.federation import Assignment, Round
from dflax.local.large_batch import LargeBatch, large_batches, large_gradient
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.recursive import Estimate, recursive
from dflax.local.solver import Optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.models.averaged import warn_of_averaging


class BvrServer(NamedTuple):
    """What the server carries.

    Attributes:
      params: x, the global model.
      estimate: the model before and the direction g taken there.
    """

    params: Params
    estimate: Estimate


def bvr_l_sgd(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    period: int,
    *,
    examples: int | None = None,
    batch_size: int = 500,
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
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState` with `init(key, params)`; the model is
      `state.server.params`. Reporting clients count the same; a round in which nobody reports leaves
      the server. Metrics: the loss's own over the local steps, `clients_reporting`, `full` (whether it
      was a round of large batches), `gradients` (examples differentiated).

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
    if at_once is not None:
        validation.integer("at_once", at_once, low=1)

    def init(key: Key[Array, ""], params: Params) -> FederatedState:
        validation.typed_key("key", key)
        validation.model("params", params)
        warn_of_averaging(params)
        start = Estimate(params, jax.tree.map(jnp.zeros_like, params))
        return FederatedState(jnp.int32(0), BvrServer(params, start), ())

    def whole(large: LargeBatch, key: Array, params: Params, data: Dataset) -> Params:
        return large_gradient(oracle, params, large, data, key)

    def difference(assignment: Assignment, params: Params, before: Params, data: Dataset) -> Params:
        steps, width = assignment.minibatches.shape
        batch = LargeBatch(assignment.minibatches, jnp.int32(steps * width))
        new, old = (whole(batch, assignment.key, x, data) for x in (params, before))
        return jax.tree.map(jnp.subtract, new, old)

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        server: BvrServer = state.server
        before, direction = server.estimate
        batch_key, full_key, walker_key = jax.random.split(round.key, 3)
        equal = (round.weights > 0).astype(jnp.float32)
        members = len(equal)
        large = large_batches(round, batch_key, examples=examples, batch_size=batch_size)
        # The very first round has no direction to correct, whatever its number.
        is_full = (round.number % period == 0) | (state.round == 0)

        def mean(rows: Params) -> Params:
            return weighted_mean(select(equal > 0, rows, jax.tree.map(jnp.zeros_like, rows)), equal)

        def fresh() -> Params:
            keys, shared = jax.random.split(full_key, members), (server.params, round.data)
            return mean(map_clients(whole, large, keys, shared=shared, at_once=at_once))

        def corrected() -> Params:
            shared = (server.params, before, round.data)
            moved = mean(map_clients(difference, round.assignments, shared=shared, at_once=at_once))
            return jax.tree.map(jnp.add, direction, moved)

        direction = jax.lax.cond(is_full, fresh, corrected)
        walker = jax.random.categorical(walker_key, jnp.log(equal))
        assignment = jax.tree.map(lambda leaf: leaf[walker], round.assignments)
        solution = solve(
            Subproblem(),
            server.params,
            assignment,
            round.data,
            index=round.number,
            memory=Estimate(server.params, direction),
        )
        minibatches = round.assignments.minibatches
        corrections = 2 * minibatches.shape[1] * minibatches.shape[2]
        seen = jnp.sum(equal * jnp.where(is_full, large.examples, corrections))
        walked = (assignment.local_steps > 0).astype(jnp.float32)[None]
        measured = jax.tree.map(lambda leaf: leaf[None], solution.metrics)
        metrics = mean_metrics(measured, walked) | {
            "clients_reporting": equal.sum(),
            "full": is_full.astype(jnp.float32),
            "gradients": seen + 2.0 * assignment.local_steps * minibatches.shape[2],
        }
        moved = BvrServer(solution.params, Estimate(server.params, direction))
        return FederatedState(state.round + 1, select(equal.sum() > 0, moved, server), ()), metrics

    return Algorithm(init, step)
