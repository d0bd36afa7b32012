"""A short run with dense checkpoints, for processes that `test_checkpoint.py` kills."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint  # noqa: F401  so that processes forked from one with this module need not

import dflax as dx
from dflax.checkpoint import Checkpoints

ROUNDS = 40


class Descent(NamedTuple):
    point: jax.Array
    momentum: jax.Array
    key: jax.Array


def noisy_descent():
    """Momentum on (1/2) |x - c|^2 with noise from a key in the state: quick to trace, hard to redo."""

    def init(key, point):
        return Descent(point, jnp.zeros_like(point), key)

    def step(state, round):
        center, _ = round
        key, draw = jax.random.split(state.key)
        gradient = state.point - center + jax.random.normal(draw, state.point.shape)
        momentum = 0.9 * state.momentum + gradient
        loss = jnp.sum(jnp.square(state.point - center))
        return Descent(state.point - 0.1 * momentum, momentum, key), {"loss": loss}

    return dx.Algorithm(init, step)


def main(checkpoint, result, running):
    """Runs, sets the event `running` after the first round, and saves state and history."""
    key = jax.random.key(3)
    algorithm = noisy_descent()
    state, history = dx.run(
        algorithm,
        algorithm.init(key, jnp.ones((50, 40))),
        dx.Events(jnp.sin(jnp.arange(float(ROUNDS)))),
        rounds=ROUNDS,
        key=key,
        evaluate=lambda state: {"mean": jnp.mean(state.point)},
        every=7,
        chunk=1,
        sinks=[lambda rounds, metrics: running.set()],
        checkpoint=None if checkpoint is None else Checkpoints(checkpoint, every_rounds=1),
    )
    state = state._replace(key=jax.random.key_data(state.key))
    leaves = jax.tree.leaves((state, history._replace(seconds=0.0, compile_seconds=0.0)))
    unfinished = pathlib.Path(f"{result}.unfinished.npz")
    np.savez(unfinished, *map(np.asarray, leaves))
    unfinished.replace(result)
