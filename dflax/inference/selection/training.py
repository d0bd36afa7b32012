"""Training of one predictor as one scan: minibatches, weights of rows, early stop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax.algorithm import Params

# `(params, rows [B], weights [B]) -> ` the loss of those rows.
RowLoss = Callable[[Params, Int[Array, " B"], Float[Array, " B"]], Float[Array, ""]]


class Schedule(NamedTuple):
    """How long and on how much a predictor is trained.

    Attributes:
      epochs: at most.
      batch: rows of a minibatch.
      held: share of the training rows that decide when to stop.
      patience: epochs without a better loss on them after which training stops.
    """

    epochs: int
    batch: int
    held: float | Float[Array, ""]
    patience: int


class _Training(NamedTuple):
    params: Params
    memory: PyTree[Array]
    best: Params
    best_loss: Float[Array, ""]
    waited: Int[Array, ""]


def trained(
    loss: RowLoss,
    optimizer: optax.GradientTransformation,
    params: Params,
    weights: Float[Array, " n"],
    key: Key[Array, ""],
    schedule: Schedule,
) -> tuple[Params, Float[Array, " epochs"]]:
    """The parameters with the least loss on held-out rows, and that loss after every epoch.

    Rows of weight 0 are neither trained on nor held out. Where no row is held out, the last epoch's
    parameters are taken. A stopped predictor waits for those it is trained beside.
    """
    n = len(weights)
    steps = -(-n // schedule.batch)
    held_key, run_key = jax.random.split(key)
    rank = _ranked(held_key, weights)
    aside = rank < jnp.round(schedule.held * jnp.sum(weights > 0))
    training, held = jnp.where(aside, 0.0, weights), jnp.where(aside, weights, 0.0)
    everything = jnp.arange(n)

    def update(carry: Any, rows: Int[Array, " B"]) -> tuple[Any, None]:
        params, memory = carry
        counted = jnp.where(rows < n, training[jnp.minimum(rows, n - 1)], 0.0)
        slope = jax.grad(loss)(params, jnp.minimum(rows, n - 1), counted)
        moves, after = optimizer.update(slope, memory, params)
        # A minibatch without rows is no step.
        some = counted.sum() > 0
        kept = (optax.apply_updates(params, moves), after)
        return jax.tree.map(lambda new, old: jnp.where(some, new, old), kept, carry), None

    def epoch(now: _Training, key: Key[Array, ""]) -> tuple[_Training, Array]:
        order = jnp.argsort(_ranked(key, training))
        dealt = jnp.pad(order, (0, steps * schedule.batch - n), constant_values=n)
        (params, memory), _ = jax.lax.scan(
            update, (now.params, now.memory), dealt.reshape(steps, schedule.batch)
        )
        found = jnp.where(held.sum() > 0, loss(params, everything, held), -jnp.inf)
        better = (found < now.best_loss) | (held.sum() == 0)
        waited = jnp.where(better, 0, now.waited + 1)
        stopped = now.waited >= schedule.patience
        after = _Training(
            params,
            memory,
            jax.tree.map(lambda new, old: jnp.where(better, new, old), params, now.best),
            jnp.where(better, found, now.best_loss),
            waited,
        )
        after = jax.tree.map(lambda new, old: jnp.where(stopped, old, new), after, now)
        return after, jnp.where(stopped, now.best_loss, found)

    begin = _Training(params, optimizer.init(params), params, jnp.array(jnp.inf), jnp.int32(0))
    end, losses = jax.lax.scan(epoch, begin, jax.random.split(run_key, schedule.epochs))
    return end.best, losses


def _ranked(key: Key[Array, ""], weights: Float[Array, " n"]) -> Int[Array, " n"]:
    """A random rank of each row, those of positive weight first."""
    drawn = jax.random.uniform(key, weights.shape)
    order = jnp.argsort(jnp.where(weights > 0, drawn, 2.0))
    return jnp.zeros_like(order).at[order].set(jnp.arange(len(weights)))
