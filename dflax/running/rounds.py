"""Rounds inside one compiled program: as many as a call asks for, with room for what they measure."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Int, Key, PyTree

from dflax.algorithm import Algorithm, Metrics, Source, State, stepped
from dflax.running.returned import verified_evaluation, verified_step

# Rounds in one call, at most.
MOST = 1024
# Bytes that the metrics of one call may take, and its evaluations as much again; one row always fits.
BYTES = 1 << 20


class Room(NamedTuple):
    """Rows that one call can hand back; they do not depend on how many rounds it does.

    Attributes:
      rounds: with the metrics of a round each.
      evaluations: with an evaluation each.
    """

    rounds: int
    evaluations: int

    def until(self, start: int, length: int, stop: int, every: int) -> int:
        """The last round of a call that starts after `start` and does `length` if they fit."""
        until = min(start + min(length, self.rounds), stop)
        evaluated = until // every - start // every + (until == stop and stop % every != 0)
        if evaluated > self.evaluations:
            until = (start // every + self.evaluations) * every
        return until


def room(metrics: PyTree[jax.ShapeDtypeStruct], evaluations: PyTree[jax.ShapeDtypeStruct]) -> Room:
    """As many rows of metrics and of evaluations as `BYTES` hold, in [1, `MOST`]."""

    def rows(row: PyTree[jax.ShapeDtypeStruct]) -> int:
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(row))
        return min(max(BYTES // max(size, 1), 1), MOST)

    return Room(rows(metrics), rows(evaluations))


# Traced once a run, for the shapes and for the program; inlined, so the program is the same.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def one_round(
    algorithm: Algorithm, state: State, source: Source, key: Key[Array, ""], index: Int[Array, ""]
) -> tuple[State, Metrics]:
    """`algorithm.step` on what the source draws, once what it returns is a state and metrics."""
    return verified_step(stepped(algorithm, state, source.draw(key, index)))


@functools.partial(jax.jit, inline=True)
def measure(evaluate: Partial | None, state: State) -> Metrics:
    """What `evaluate` returns, once that is arrays; nothing without one."""
    return {} if evaluate is None else verified_evaluation(evaluate(state))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def advance(
    algorithm: Algorithm,
    rows: Room,
    state: State,
    source: Source,
    evaluate: Partial | None,
    key: Key[Array, ""],
    start: Int[Array, ""],
    until: Int[Array, ""],
    stop: Int[Array, ""],
    every: Int[Array, ""],
) -> tuple[State, Metrics, Metrics]:
    """Rounds start, ..., until - 1: the bounds are data, so one program serves every chunk length.

    Returns:
      The state; metrics `[rows.rounds, ...]`, of which the first `until - start` rows are filled;
      evaluations `[rows.evaluations, ...]`, filled one after the other: after the rounds whose number
      (from 1) `every` divides, and after `stop`.
    """
    _, metrics = jax.eval_shape(functools.partial(one_round, algorithm), state, source, key, start)
    evaluations = jax.eval_shape(measure, evaluate, state)

    def buffer(row: PyTree[jax.ShapeDtypeStruct], length: int) -> PyTree[Array]:
        return jax.tree.map(lambda leaf: jnp.zeros((length, *leaf.shape), leaf.dtype), row)

    def write(buffer: PyTree[Array], place: Array, row: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(lambda rows, new: rows.at[place].set(new), buffer, row)

    def body(index: Array, carry: Any) -> Any:
        state, metrics, evaluations, place = carry
        state, measured = one_round(algorithm, state, source, key, index)
        scheduled = ((index + 1) % every == 0) | (index + 1 == stop)
        evaluations = jax.lax.cond(
            scheduled,
            lambda state, buffer: write(buffer, place, measure(evaluate, state)),
            lambda state, buffer: buffer,
            state,
            evaluations,
        )
        return state, write(metrics, index - start, measured), evaluations, place + scheduled

    buffers = buffer(metrics, rows.rounds), buffer(evaluations, rows.evaluations)
    state, metrics, evaluations, _ = jax.lax.fori_loop(
        start, until, body, (state, *buffers, jnp.int32(0))
    )
    return state, metrics, evaluations
