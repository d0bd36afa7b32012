"""The host loop: compiled chunks of rounds, progress, evaluation on a schedule, metric sinks."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Source, State
from dflax.mesh import shard
from dflax.sinks import Sink, flatten

# Rounds whose metrics one compiled call can hand back.
CAPACITY = 1024
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
) -> tuple[State, History]:
    """Runs `rounds` rounds and tells about them.

    Rounds run inside one compiled program, several to a call; the state is donated from call to
    call, so it exists once. The program's size, the memory it needs and its results do not depend on
    how many rounds a call does.

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
      every: rounds between evaluations, >= 1; default: only after the last round.
      chunk: most rounds per compiled call, in [1, 1024]; default: as many as take half a second.
      sinks: each is called with the rounds of a chunk and their metrics, evaluations under "evaluation".
      progress: show a bar with rounds per second and the last metrics; default: on a terminal only.
      title: the bar's label.
      mesh: devices to deal the clients over; a mesh with the axis "clients".
      donate: give the buffers of `state` to the run instead of a copy: saves memory, and `state` must
        not be used afterwards.

    Returns:
      The state after the last round, and the `History`.

    Raises:
      TypeError, ValueError: naming the argument, before anything is compiled.
    """
    if not isinstance(algorithm, Algorithm):
        raise TypeError(f"algorithm must be an Algorithm, got {algorithm!r}.")
    validation.integer("rounds", rounds, low=0)
    validation.typed_key("key", key)
    if every is not None:
        validation.integer("every", every, low=1)
    if chunk is not None:
        validation.integer("chunk", chunk, low=1, high=CAPACITY)
    if start is None:
        start = int(getattr(state, "round", 0))
    validation.integer("start", start, low=0)
    if evaluate is not None:
        validation.function("evaluate", evaluate)
        evaluate = evaluate if isinstance(evaluate, Partial) else Partial(evaluate)

    stop = start + rounds
    every = max(stop, 1) if every is None else every
    state = jax.tree.map(jnp.asarray, state) if donate else jax.tree.map(jnp.copy, state)
    with contextlib.ExitStack() as stack:
        if mesh is not None:
            state, source = shard(state, mesh), jax.device_put(source, _replicated(mesh))
            evaluate = jax.device_put(evaluate, _replicated(mesh))
            stack.enter_context(jax.set_mesh(mesh))
        advance = functools.partial(_chunk, algorithm)
        began = time.perf_counter()
        # No rounds: compiles, and measures how long that takes, without touching the state.
        state, metrics, evaluations = advance(
            state, source, evaluate, key, start, start, stop, every
        )
        jax.block_until_ready(state)
        compile_seconds = time.perf_counter() - began

        gathered = [_rows((metrics, evaluations), slice(0, 0))]
        show = stack.enter_context(_bar(progress, title, rounds))
        seconds, length, done = 0.0, chunk or 1, start
        while done < stop:
            until = min(done + length, stop)
            began = time.perf_counter()
            state, metrics, evaluations = advance(
                state, source, evaluate, key, done, until, stop, every
            )
            rows = _rows((metrics, evaluations), slice(0, until - done))
            took = time.perf_counter() - began
            seconds += took
            gathered.append(rows)
            numbers = np.arange(done, until) + 1
            evaluated = _scheduled(numbers, stop, every)
            for sink in sinks:
                sink(numbers, _with_evaluations(rows, evaluated, evaluate is not None))
            show(until - start, seconds, rows, evaluated)
            if chunk is None:
                fitting = int(SECONDS_PER_CHUNK * (until - done) / max(took, 1e-9))
                length = min(max(fitting, 1), 2 * length, CAPACITY)
            done = until
    numbers = np.arange(start, stop) + 1
    metrics, evaluations = jax.tree.map(lambda *parts: np.concatenate(parts), *gathered)
    evaluated = _scheduled(numbers, stop, every) & (evaluate is not None)
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

    _, measured = jax.eval_shape(one_round, state, start)
    buffers = jax.tree.map(
        lambda leaf: jnp.zeros((CAPACITY, *leaf.shape), leaf.dtype),
        (measured, jax.eval_shape(measure, state)),
    )
    return jax.lax.fori_loop(start, until, body, (state, *buffers))


def _replicated(mesh: Mesh) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _rows(tree: Any, rows: slice) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tree)


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


@contextlib.contextmanager
def _bar(progress: bool | None, title: str, rounds: int) -> Iterator[Callable[..., None]]:
    """A progress bar on the terminal's error stream, or nothing."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title or "rounds", total=rounds, speed="compiling", last="")
        latest: dict[str, str] = {}

        def show(done: int, seconds: float, rows: Any, evaluated: np.ndarray) -> None:
            metrics, evaluations = rows
            named = {name: leaf[-1] for name, leaf in flatten(metrics).items() if leaf.ndim == 1}
            if evaluated.any():
                last = np.flatnonzero(evaluated)[-1]
                for name, leaf in flatten(evaluations).items():
                    if leaf.ndim == 1:
                        named[f"test {name}"] = leaf[last]
            latest.update({name: f"{name} {value:.4g}" for name, value in named.items()})
            bar.update(
                task,
                completed=done,
                speed=f"{done / max(seconds, 1e-9):.1f} rounds/s",
                last="  ".join(list(latest.values())[:4]),
            )

        yield show
