"""Short runs with dense checkpoints, for processes that `test_checkpoint.py` kills."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  so that processes forked from one with this module need not
from tasks import regression, softmax_loss

import dflax as dx
from dflax import participation
from dflax.running.checkpoints.checkpoint import Checkpoints

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


def descent(key):
    """The smallest run there is: (algorithm, first state, source, evaluation)."""
    algorithm = noisy_descent()
    return (
        algorithm,
        algorithm.init(key, jnp.ones((50, 40))),
        dx.Events(jnp.sin(jnp.arange(float(ROUNDS)))),
        lambda state: {"mean": jnp.mean(state.point)},
    )


def gossip(key):
    """A federation whose clients keep momentum, meet in random pairs, and fail to report at times."""
    task = regression()
    source = dx.Federation(
        task.data,
        task.partition,
        batch_size=6,
        local_steps=2,
        participation=participation.dropout(participation.uniform(5), 0.3),
    )
    algorithm = dx.decentralized.dfedavg(
        softmax_loss,
        optax.sgd(0.1, momentum=0.9),
        dx.gossip.random_matching(8),
        keep_optimizer=True,
    )
    state = algorithm.init(key, task.params)
    return algorithm, state, source, lambda state: {"mean": jnp.mean(state.clients.params["w"])}


RUNS = (descent, gossip)


def main(make, checkpoint, result, running):
    """Runs what `make` gives, sets the event `running` after a round, saves state and history."""
    key = jax.random.key(3)
    algorithm, start, source, evaluate = make(key)
    state, history = dx.run(
        algorithm,
        start,
        source,
        rounds=ROUNDS,
        key=key,
        evaluate=evaluate,
        every=7,
        chunk=1,
        sinks=[lambda rounds, metrics: running.set()],
        checkpoint=None if checkpoint is None else Checkpoints(checkpoint, every_rounds=1),
    )
    leaves = jax.tree.leaves((state, history._replace(seconds=0.0, compile_seconds=0.0)))
    unfinished = pathlib.Path(f"{result}.unfinished.npz")
    np.savez(unfinished, *map(_numbers, leaves))
    unfinished.replace(result)


def _numbers(leaf):
    is_key = jax.dtypes.issubdtype(jax.dtypes.result_type(leaf), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)
