"""The host loop: compiled chunks of rounds, progress, evaluation, metric sinks, checkpoints."""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding
from jax.tree_util import Partial
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Source, State, verify_algorithm, verify_source
from dflax.mesh import collect, replicate_source, shard, state_sharding
from dflax.running import fingerprint
from dflax.running.checkpoint import Checkpoints, Store
from dflax.running.interrupt import held_signals, obey
from dflax.running.progress import progress_bar
from dflax.running.sinks import Sink

# Rounds whose metrics one compiled call can hand back.
CAPACITY = 1024
# Rounds are numbered in int32.
LARGEST = 2**31 - 1
# The loop looks up (progress, sinks, interrupts) about so often.
SECONDS_PER_CHUNK = 0.5


class History(NamedTuple):
    """What a run measured, as NumPy arrays on the host.

    Attributes:
      rounds: `[T]` the rounds done, counted from 1.
      metrics: the algorithm's metrics, leaves `[T, ...]`.
      evaluated: `[E]` the rounds after which the state was evaluated.
      evaluations: the evaluation's metrics, leaves `[E, ...]`; empty without one.
      seconds: time spent in rounds and evaluations, compilation excluded.
      compile_seconds: time spent tracing and compiling.
    """

    rounds: Int[np.ndarray, " T"]
    metrics: PyTree[np.ndarray]
    evaluated: Int[np.ndarray, " E"]
    evaluations: PyTree[np.ndarray]
    seconds: float
    compile_seconds: float

    @property
    def rounds_per_second(self) -> float:
        """Rounds per second, compilation excluded, evaluations included."""
        return len(self.rounds) / max(self.seconds, 1e-9)


def run(
    algorithm: Algorithm,
    state: State,
    source: Source,
    *,
    rounds: int,
    key: Key[Array, ""],
    start: int | None = None,
    evaluate: Callable[[State], Metrics] | None = None,
    every: int | None = None,
    chunk: int | None = None,
    sinks: Sequence[Sink] = (),
    progress: bool | None = None,
    title: str = "",
    mesh: Mesh | None = None,
    donate: bool = False,
    checkpoint: str | os.PathLike | Checkpoints | None = None,
) -> tuple[State, History]:
    """Runs `rounds` rounds and tells about them.

    Rounds run inside one compiled program, several to a call; the state is donated from call to
    call, so it exists once. The program's size, the memory it needs and its results do not depend on
    how many rounds a call does.

    With `checkpoint`, a run that was killed is taken up again by the same call: from the newest good
    checkpoint, on any number of devices. Its state and history are those of a run that was never
    interrupted, bit for bit on devices of the same kind and number; its times add up over all
    attempts. `state` is then only the run's identity and shape. The last state is always saved. A
    call for more rounds than were done goes on, one for as many returns what is stored. (The last
    round of a shorter run was evaluated: that stays in the history.) Sinks get the rounds between
    the checkpoint and the kill twice. A SIGTERM or Ctrl-C ends the run after the chunk at hand, with
    a checkpoint; a second one ends it at once.

    Args:
      algorithm: what is run.
      state: from `algorithm.init`, or what an earlier run returned.
      source: hands out the rounds, for example a `Federation`; a pytree, passed as an argument.
      rounds: how many, >= 0.
      key: the run's typed key. Round t depends on the key and t only, so two runs of 50 rounds equal
        one of 100 with the same key.
      start: number of the first round; default `state.round` where the state has one, else 0.
      evaluate: `state -> metrics`, part of the compiled program; see `dflax.evaluation`. It runs
        after the rounds whose number (from 1) `every` divides, and after the last.
      every: rounds between evaluations, >= 1; default: only after the last round. Needs `evaluate`.
      chunk: most rounds per compiled call, in [1, 1024]; default: as many as take half a second.
      sinks: each is called with the rounds of a chunk and their metrics, evaluations under "evaluation".
        On several hosts those of process 0 only.
      progress: show a bar with rounds per second and the last metrics; default: on a terminal only.
      title: the bar's label.
      mesh: devices to deal the clients over; a mesh with the axis "clients".
      donate: give the buffers of `state` to the run instead of a copy: saves memory, and `state` must
        not be used afterwards. Nor must `params`, where `algorithm.init(key, params)` put the very
        same arrays into the state, as most do.
      checkpoint: a folder of this run's own, saved to every minute, or `dflax.checkpoint.Checkpoints`
        for another cadence; default: nothing is saved.

    Returns:
      The state after the last round, and the `History`.

    Raises:
      TypeError, ValueError: naming the argument, before anything is compiled; the folder holds
        another run, or one that has done more rounds than are asked for.
      dflax.interrupt.Terminated: a SIGTERM came and the checkpoint is safe; a `SystemExit` with
        code 143. After Ctrl-C it is a `KeyboardInterrupt`. With `checkpoint` only.
    """
    verify_algorithm("algorithm", algorithm)
    validation.integer("rounds", rounds, low=0)
    validation.typed_key("key", key)
    if every is not None:
        validation.integer("every", every, low=1)
        if evaluate is None:
            raise ValueError(f"every needs evaluate, got every={every} and nothing to evaluate.")
    if chunk is not None:
        validation.integer("chunk", chunk, low=1, high=CAPACITY)
    verify_state(state)
    if start is None:
        number = getattr(state, "round", 0)
        # Of a state that is a bare array, `round` is the method that rounds.
        start = 0 if callable(number) else int(number)
    validation.integer("start", start, low=0)
    if start + rounds > LARGEST:
        raise ValueError(
            f"start + rounds must be at most 2^31 - 1, got {start} + {rounds}. Rounds are numbered "
            "in 32 bits."
        )
    verify_source(source, start + rounds)
    validation.instance("sinks", sinks, Sequence, "Pass a list, such as [dflax.sinks.jsonl(path)].")
    for place, sink in enumerate(sinks):
        validation.function(f"sinks[{place}]", sink, "It is called with rounds and metrics.")
    if mesh is not None:
        validation.instance("mesh", mesh, Mesh, "Make one with dflax.client_mesh().")
    if progress is not None:
        validation.flag("progress", progress)
    validation.flag("donate", donate)
    validation.instance("title", title, str)
    if evaluate is not None:
        validation.function("evaluate", evaluate)
        evaluate = evaluate if isinstance(evaluate, Partial) else Partial(evaluate)
    if checkpoint is not None and not isinstance(checkpoint, Checkpoints):
        checkpoint = Checkpoints(checkpoint)

    stop = start + rounds
    period = max(stop, 1) if every is None else every
    done, seconds, compile_seconds = start, 0.0, 0.0
    gathered: list[Any] = []
    received: list[int] = []
    with contextlib.ExitStack() as stack:
        store = saved = None
        if checkpoint is not None:
            received = stack.enter_context(held_signals())
            state = jax.tree.map(jnp.asarray, state)
            with _explained("algorithm.step or evaluate"):
                identity, row = fingerprint.run(
                    algorithm, state, source, evaluate, key=key, start=start, every=every
                )
            store = Store(checkpoint, identity, row)
            stack.callback(store.close)
            saved = store.newest(state, _places(state, mesh))
        if saved is None:
            state = jax.tree.map(jnp.asarray if donate else jnp.copy, state)
        else:
            done, state, rows, seconds, compile_seconds = saved
            gathered.append(rows)
            validation.integer(
                "rounds",
                rounds,
                low=done - start,
                fix="So many are done in this checkpoint's folder; ask for more, or choose another.",
            )
        if mesh is not None:
            state, source = shard(state, mesh), replicate_source(source, mesh)
            evaluate = replicate_source(evaluate, mesh)
            stack.enter_context(jax.set_mesh(mesh))
        advance = functools.partial(_chunk, algorithm)
        if done < stop or saved is None:
            began = time.perf_counter()
            # No rounds: compiles, and measures how long that takes, without touching the state.
            state, metrics, evaluations = advance(
                state, source, evaluate, key, done, done, stop, period
            )
            jax.block_until_ready(state)
            compile_seconds += time.perf_counter() - began
            gathered.append((*_rows((metrics, evaluations), slice(0, 0)), np.zeros(0, bool)))

        show = stack.enter_context(progress_bar(progress, title, rounds))
        length, signal = chunk or 1, 0
        while done < stop and not signal:
            until = min(done + length, stop)
            if store is not None:
                until = store.cut(done, until)
            began = time.perf_counter()
            state, metrics, evaluations = advance(
                state, source, evaluate, key, done, until, stop, period
            )
            rows = _rows((metrics, evaluations), slice(0, until - done))
            took = time.perf_counter() - began
            seconds += took
            numbers = np.arange(done, until) + 1
            evaluated = _scheduled(numbers, stop, period)
            gathered.append((*rows, evaluated & (evaluate is not None)))
            for sink in sinks if jax.process_index() == 0 else ():
                sink(numbers, _with_evaluations(rows, evaluated, evaluate is not None))
            show(until - start, seconds, rows, evaluated)
            if chunk is None:
                fitting = int(SECONDS_PER_CHUNK * (until - done) / max(took, 1e-9))
                length = min(max(fitting, 1), 2 * length, CAPACITY)
            done = until
            due = False
            if store is not None:
                store.record(gathered[-1])
                due = store.due(done)
            length, due, signal = _agreed(length, due, received[0] if received else 0)
            if store is not None and due:
                store.save(state, done, seconds, compile_seconds)
        if store is not None:
            store.save(state, done, seconds, compile_seconds)
            store.wait()
            if signal or received:
                obey(signal or received[0])
    metrics, evaluations, evaluated = jax.tree.map(lambda *rows: np.concatenate(rows), *gathered)
    numbers = np.arange(start, stop) + 1
    return state, History(
        numbers,
        metrics,
        numbers[evaluated],
        jax.tree.map(lambda leaf: leaf[evaluated], evaluations),
        seconds,
        compile_seconds,
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _chunk(
    algorithm: Algorithm,
    state: State,
    source: Source,
    evaluate: Partial | None,
    key: Key[Array, ""],
    start: Int[Array, ""],
    until: Int[Array, ""],
    stop: Int[Array, ""],
    every: Int[Array, ""],
) -> tuple[State, Metrics, Metrics]:
    """Rounds start, ..., until - 1: the bounds are data, so one program serves every chunk length."""

    def measure(state: State) -> Metrics:
        return {} if evaluate is None else evaluate(state)

    def one_round(state: State, index: Array) -> tuple[State, Metrics]:
        return algorithm.step(state, source.draw(key, index))

    def body(index: Array, carry: Any) -> Any:
        state, metrics, evaluations = carry
        state, measured = one_round(state, index)
        number = index + 1
        evaluated = jax.lax.cond(
            (number % every == 0) | (number == stop),
            measure,
            lambda state: jax.tree.map(jnp.zeros_like, jax.eval_shape(measure, state)),
            state,
        )
        row = index - start
        write = functools.partial(jax.tree.map, lambda buffer, new: buffer.at[row].set(new))
        return state, write(metrics, measured), write(evaluations, evaluated)

    # Before anything is compiled: a state, source or evaluation that do not fit are refused here.
    with _explained("algorithm.step"):
        after, measured = jax.eval_shape(one_round, state, start)
        stays = [
            (jax.tree_util.keystr(path), jnp.shape(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        ]
        if stays != [
            (jax.tree_util.keystr(path), leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(after)
        ]:
            raise TypeError("the state after a round differs from the one before in its structure")
    with _explained("evaluate"):
        evaluated = jax.eval_shape(measure, state)
    buffers = jax.tree.map(
        lambda leaf: jnp.zeros((CAPACITY, *leaf.shape), leaf.dtype), (measured, evaluated)
    )
    return jax.lax.fori_loop(start, until, body, (state, *buffers))


def verify_state(state: Any) -> None:
    """Refuse a state that is no pytree of arrays and numbers, such as None."""
    leaves = jax.tree.leaves(state)
    numbers = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
    odd = [leaf for leaf in leaves if not isinstance(leaf, numbers)]
    if odd or not leaves:
        raise TypeError(
            f"state must be a pytree of arrays, got {type(state).__name__}"
            f"{f' with a leaf of type {type(odd[0]).__name__}' if odd else ' without any'}. Make one "
            "with algorithm.init(key, params)."
        )


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors in tracing what the caller handed in, with a hint; those of value checks as they are."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise TypeError(
            f"{what} does not fit the state and source of this run: {type(error).__name__}: {error}. "
            "The state must come from this algorithm's init, the source must draw what its step "
            "takes, and evaluate must measure what the state has: evaluation.server_model for a model "
            "at the server, client_models, mean_model or consensus for models of the clients."
        ) from error


def _places(state: State, mesh: Mesh | None) -> list[Sharding | None]:
    """Where each leaf of a restored state goes; None where a new array would go."""
    if mesh is not None:
        return jax.tree.leaves(state_sharding(state, mesh))
    return [leaf.sharding if leaf.committed else None for leaf in jax.tree.leaves(state)]


def _agreed(length: int, due: bool, signal: int) -> tuple[int, bool, int]:
    """What all processes do next: their clocks differ, and so do the signals that reach them."""
    if jax.process_count() == 1:
        return length, due, signal
    everyones = multihost_utils.process_allgather(np.array([length, due, signal]))
    return int(everyones[:, 0].min()), bool(everyones[:, 1].any()), int(everyones[:, 2].max())


def _rows(tree: Any, rows: slice) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], collect(tree))


def _scheduled(numbers: np.ndarray, stop: int, every: int) -> np.ndarray:
    return (numbers % every == 0) | (numbers == stop)


def _with_evaluations(rows: Any, evaluated: np.ndarray, wanted: bool) -> Any:
    """Metrics and, under "evaluation", evaluations that are NaN where there was none."""
    metrics, evaluations = rows
    if not wanted:
        return metrics

    def blank(leaf: np.ndarray) -> np.ndarray:
        mask = evaluated.reshape(evaluated.shape + (1,) * (leaf.ndim - 1))
        return np.where(mask, leaf.astype(np.float64), np.nan)

    return {**metrics, "evaluation": jax.tree.map(blank, evaluations)}
