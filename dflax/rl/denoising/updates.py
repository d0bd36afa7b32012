"""From a round's trajectories to new parameters: minibatches, and one time step after another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax.algorithm import Metrics, Params
from dflax.clients import select
from dflax.rl.denoising.policy import DenoisingPolicy, log_probs_at
from dflax.rl.surrogate import clipped


class Trajectories(NamedTuple):
    """What a round's samples are to the update; B trajectories.

    Attributes:
      states: `[T + 1, B, ...]`.
      log_probs: `[T, B]`, when they were drawn.
      condition: leaves `[B, ...]`.
      advantages: `[B]`.
      counted: `[B]`, 0 for those that are left out.
    """

    states: Float[Array, "steps B ..."]
    log_probs: Float[Array, "T B"]
    condition: PyTree[Array]
    advantages: Float[Array, " B"]
    counted: Float[Array, " B"]

    def of(self, rows: Int[Array, " b"]) -> "Trajectories":
        """Some of the trajectories."""
        first = jax.tree.map(lambda leaf: leaf[rows], self[2:])
        return Trajectories(self.states[:, rows], self.log_probs[:, rows], *first)


class Update(NamedTuple):
    """How trajectories are used; all but the clip range are static.

    Attributes:
      clip: eps of the clipped objective; None for the gradient of log p, on policy.
      pessimistic: see `dflax.rl.clipped`.
      minibatches: optimiser steps an epoch.
      epochs: passes over the trajectories.
      trained_steps: time steps of each trajectory in a minibatch, drawn anew each time; None: all.
      steps_at_once: time steps that are differentiated together.
    """

    clip: float | Float[Array, ""] | None
    pessimistic: bool
    minibatches: int
    epochs: int
    trained_steps: int | None
    steps_at_once: int


def updated(
    policy: DenoisingPolicy,
    update: Update,
    optimizer: optax.GradientTransformation,
    state: tuple[Params, PyTree[Array]],
    frozen: Params | None,
    trajectories: Trajectories,
    key: Key[Array, ""],
) -> tuple[tuple[Params, PyTree[Array]], Metrics]:
    """Parameters and optimiser after all minibatches; metrics are means over them."""
    count = trajectories.advantages.shape[0]
    order_key, steps_key = jax.random.split(key)
    shuffle = jax.vmap(lambda own: jax.random.permutation(own, count))
    orders = shuffle(jax.random.split(order_key, update.epochs))
    rows = orders.reshape(update.epochs * update.minibatches, -1)

    def one(state: Any, row: Any) -> tuple[Any, Metrics]:
        params, memory = state
        chosen, own_key = row
        part = trajectories.of(chosen)
        gradient, metrics = ascent(policy, update, params, frozen, part, own_key)
        descent = jax.tree.map(jnp.negative, gradient)
        changes, moved = optimizer.update(descent, memory, params)
        after = optax.apply_updates(params, changes), moved
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        # Momentum and weight decay would move it also where nothing was seen.
        return select(jnp.any(part.counted > 0), after, state), metrics

    keys = jax.random.split(steps_key, rows.shape[0])
    state, metrics = jax.lax.scan(one, state, (rows, keys))
    return state, jax.tree.map(jnp.mean, metrics)


def ascent(
    policy: DenoisingPolicy,
    update: Update,
    params: Params,
    frozen: Params | None,
    trajectories: Trajectories,
    key: Key[Array, ""],
) -> tuple[Params, Metrics]:
    """The gradient of the mean objective over trajectories that count and over their time steps.

    It is added up over chunks of time steps, so that memory is that of one chunk's activations.
    """
    chunks = chosen_steps(policy.steps, update, trajectories.advantages.shape[0], key)
    total = jnp.maximum(jnp.sum(trajectories.counted), 1.0)
    rows = jnp.arange(trajectories.advantages.shape[0])

    def objective(params: Params, numbers: Int[Array, "c B"]) -> tuple[Array, Metrics]:
        weights = policy.weights(params, frozen)
        now = log_probs_at(policy, weights, trajectories.states, numbers, trajectories.condition)
        metrics: Metrics = {}
        if update.clip is None:
            each = trajectories.counted * now * trajectories.advantages
        else:
            each, metrics = clipped(
                now - trajectories.log_probs[numbers, rows],
                trajectories.advantages,
                update.clip,
                pessimistic=update.pessimistic,
                weights=jnp.broadcast_to(trajectories.counted, now.shape),
            )
        return jnp.sum(each) / (total * numbers.shape[0]), metrics

    def add(summed: Params, numbers: Int[Array, "c B"]) -> tuple[Params, Metrics]:
        gradient, metrics = jax.grad(objective, has_aux=True)(params, numbers)
        return jax.tree.map(jnp.add, summed, gradient), metrics

    summed, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), chunks)
    mean = jax.tree.map(lambda leaf: leaf / chunks.shape[0], summed)
    return mean, jax.tree.map(jnp.mean, metrics)


def chosen_steps(
    steps: int, update: Update, count: int, key: Key[Array, ""]
) -> Int[Array, "chunks c B"]:
    """The numbers of the time steps, in chunks; where not all are trained, drawn for each trajectory."""
    wanted = steps if update.trained_steps is None else update.trained_steps
    if wanted < steps:
        marks = jax.random.uniform(key, (steps, count))
        numbers = jnp.argsort(marks, axis=0)[:wanted]
    else:
        numbers = jnp.broadcast_to(jnp.arange(steps)[:, None], (steps, count))
    return numbers.reshape(-1, update.steps_at_once, count)
