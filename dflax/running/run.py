"""The host loop: compiled chunks of rounds, progress, evaluation, metric sinks, checkpoints."""

import contextlib
import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding
from jax.tree_util import Partial
from jaxtyping import Array, Key, PyTree

from dflax import validation
from dflax.algorithm import (
    Algorithm,
    Limit,
    Metrics,
    Source,
    State,
    verify_algorithm,
    verify_source,
)
from dflax.blame import blamed
from dflax.clients import is_planned
from dflax.evaluation.measures import OfModel
from dflax.mesh import replicate_source, shard, state_sharding
from dflax.running import history
from dflax.running import rounds as compiled
from dflax.running.checkpoints import fingerprint
from dflax.running.checkpoints.checkpoint import Checkpoints
from dflax.running.checkpoints.store import Store
from dflax.running.history import Best, History, Rows
from dflax.running.interrupt import LimitReached, held_signals, obey
from dflax.running.progress import progress_bar
from dflax.running.returned import verify_same_state, verify_state
from dflax.running.sinks import Sink
from dflax.running.stop import Objective, Rule
from dflax.running.watch import Watch

# Rounds are numbered in int32.
LARGEST = 2**31 - 1
# The loop looks up (progress, sinks, interrupts) about so often.
SECONDS_PER_CHUNK = 0.5


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
    limit: Limit | None = None,
    stop: Rule | None = None,
    keep_best: Objective | None = None,
) -> tuple[State, History]:
    """Runs `rounds` rounds and tells about them.

    Rounds run inside one compiled program, several to a call; the state is donated from call to
    call, so it exists once. The program's size, the memory it needs and its results do not depend on
    how many rounds a call does. What the rounds of a call measure takes at most 2 MiB there, or one
    row where that is larger; on the host a run holds its history and nothing else.

    The program is kept, and used again by the next call with the same `algorithm` (the same object: a
    factory called twice gives two algorithms, and two programs), arrays of the same shapes, and an
    equal `evaluate`: the same function, or `dflax.evaluation` called again with the same arguments.

    An error in a function of yours comes out as it is. What `algorithm.step` and `evaluate` return is
    checked while they are traced.

    With `checkpoint`, a run that was killed is taken up again by the same call: from the newest good
    checkpoint, on any number of devices. Its state and history are those of a run that was never
    interrupted, bit for bit on devices of the same kind and number; its times add up over all
    attempts. `state` is then only the run's identity and shape. The last state is always saved. A
    call for more rounds than were done goes on, one for as many returns what is stored. (The last
    round of a shorter run was evaluated: that stays in the history.) Sinks get the rounds between
    the checkpoint and the kill twice; those of `dflax.sinks` keep each of them once. A SIGTERM or
    Ctrl-C ends the run after the chunk at hand, with a checkpoint; a second one ends it at once.

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
      every: rounds between evaluations, >= 1; default: only after the last round. Needs `evaluate`,
        `stop` or `keep_best`.
      chunk: most rounds per compiled call, in [1, 1024]; default: as many as take half a second. Fewer
        are done where metrics or evaluations are large.
      sinks: each is called with the rounds of a chunk and their metrics, evaluations under "evaluation",
        NaN after rounds that were not evaluated. On several hosts those of process 0 only.
      progress: show a bar with rounds per second and the last metrics; default: on a terminal only.
      title: the bar's label.
      mesh: devices to deal the clients over; a mesh with the axis "clients".
      donate: give the buffers of `state` to the run instead of a copy: saves memory, and `state` must
        not be used afterwards. Nor must `params`, where `algorithm.init(key, params)` put the very
        same arrays into the state, as most do.
      checkpoint: a folder of this run's own, saved to every minute, or `dflax.checkpoint.Checkpoints`
        for another cadence; default: nothing is saved.
      limit: where the run ends even if more rounds are asked for, such as `dflax.privacy.budget`. The
        last allowed round is evaluated and saved as the last of any run; a further call does none.
      stop: a rule that ends the run early, such as `dflax.stop.patience`; see `dflax.stop`. It looks at
        the rounds whose number `every` divides, on the host, so no compiled call goes beyond one.
        The state is that of the round it stops at, and `history.stopped` says why. Taken up from a
        checkpoint, the run ends after the same round with the same bits, or has ended already. A
        call without the rule, or with a more patient one, goes on from there.
      keep_best: keeps the state with the best value of a number, such as
        `dflax.stop.highest("accuracy")`, beside the last one: `history.best`. It looks when `stop`
        does, and at the last round; of equal values the first counts. That is one more copy of the
        state on the devices, and in every checkpoint.

    Returns:
      The state after the last round, and the `History`.

    Raises:
      TypeError, ValueError: naming the argument, before anything is compiled; the folder holds
        another run, or one that has done more rounds than are asked for.
      OSError: the checkpoint's folder could not be written; the last good checkpoint in it stands.
      dflax.running.checkpoints.lock.InUseError: another process trains in the checkpoint's folder.
      dflax.interrupt.Terminated: a SIGTERM came and the checkpoint is safe; a `SystemExit` with
        code 143. After Ctrl-C it is a `KeyboardInterrupt`. With `checkpoint` only.

    Warns:
      dflax.interrupt.LimitReached: the limit came before the last round that was asked for.
      RuntimeWarning: a checkpoint is damaged, or holds no best state by what `keep_best` asks for.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> algorithm = dx.server.fedavg(dx.data.quadratic_loss, optax.sgd(0.5))
      >>> state = algorithm.init(jax.random.key(0), jnp.zeros(3))
      >>> state, history = dx.run(algorithm, state, federation, rounds=20, key=jax.random.key(1))
      >>> history.metrics["loss"].shape, bool(history.metrics["loss"][-1] < history.metrics["loss"][0])
      ((20,), True)
    """
    _verify_arguments(algorithm, state, rounds, key, every, chunk, sinks, mesh)
    _verify_options(progress, donate, title)
    watch = Watch(stop, keep_best, every)
    evaluate = _as_evaluation(evaluate, None if watch.active else every)
    start = _first_round(state, start, rounds)
    asked, rounds = rounds, _allowed(limit, start, rounds)
    verify_source(source, start + rounds)
    if checkpoint is not None and not isinstance(checkpoint, Checkpoints):
        checkpoint = Checkpoints(checkpoint)

    last = start + rounds
    task = _Task(algorithm, source, evaluate, key, last, last if every is None else every)
    received: list[int] = []
    with contextlib.ExitStack() as stack:
        if checkpoint is not None:
            received = stack.enter_context(held_signals())
        state = jax.tree.map(jnp.asarray, state)
        row, evaluation = _traced(task, state)
        watch.verify(row, evaluation)
        store, course = None, None
        if checkpoint is not None:
            seen = every if evaluate is not None else None
            store = _opened(stack, checkpoint, task, state, start, seen, (row, evaluation), watch)
            course = _stored(store, state, mesh, watch, start, rounds)
        if course is None:
            course = _Course(state if donate else jax.tree.map(jnp.copy, state), start)
        if mesh is not None:
            course.state, task = shard(course.state, mesh), task.on(mesh)
            stack.enter_context(jax.set_mesh(mesh))
        room = compiled.room(row, evaluation)
        if (course.done < last and watch.reason is None) or not course.rows:
            course.compile(task, room)
        show = stack.enter_context(progress_bar(progress, title, rounds))
        tell = sinks if jax.process_index() == 0 else ()
        # A sink gets as many rows of evaluations as of metrics.
        most = min(chunk or compiled.MOST, room.evaluations if sinks else compiled.MOST)
        length, signal = min(chunk or 1, most), 0
        while course.done < last and watch.reason is None and not signal:
            until = watch.cut(course.done, room.until(course.done, length, last, task.every))
            if store is not None:
                until = store.cut(course.done, until)
            done = until - course.done
            measured, evaluations, took = course.advance(task, room, until)
            for sink in tell:
                sink(
                    measured.numbers, history.for_sinks(measured, evaluations, evaluate is not None)
                )
            show(course.done - start, course.seconds, measured, evaluations)
            watch.look(measured, evaluations, course.state, last=course.done == last)
            if chunk is None:
                fitting = int(SECONDS_PER_CHUNK * done / max(took, 1e-9))
                length = min(max(fitting, 1), 2 * length, most)
            if store is not None:
                store.record(measured, evaluations)
            due = store is not None and store.due(course.done)
            length, due, signal = _agreed(length, due, received[0] if received else 0)
            if store is not None and due:
                course.save(store, watch.best)
        if store is not None:
            course.save(store, watch.best)
            store.wait()
            if signal or received:
                obey(signal or received[0])
    if limit is not None and rounds < asked and course.done == last:
        _warn_of(limit, last, start + asked, saved=checkpoint is not None)
    return course.state, course.history()._replace(stopped=watch.reason, best=watch.best)


class _Task(NamedTuple):
    """What every call of the compiled program is given."""

    algorithm: Algorithm
    source: Source
    evaluate: Partial | None
    key: Key[Array, ""]
    stop: int
    period: int

    @property
    def every(self) -> int:
        """Rounds between evaluations; so many that none comes before the last where none is asked."""
        return min(max(self.period, 1), LARGEST)

    def on(self, mesh: Mesh) -> "_Task":
        """The same on every device of a mesh."""
        source, evaluate = (replicate_source(part, mesh) for part in (self.source, self.evaluate))
        return self._replace(source=source, evaluate=evaluate)


@dataclasses.dataclass
class _Course:
    """How far a run has come.

    Attributes:
      state: after round `done`; donated with every call.
      done: number of the last round.
      rows: of metrics, so far.
      evaluations: rows of evaluations, so far.
      seconds: as in `History`.
      compile_seconds: as in `History`.
    """

    state: State
    done: int
    rows: list[Rows] = dataclasses.field(default_factory=list)
    evaluations: list[Rows] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    compile_seconds: float = 0.0

    def compile(self, task: _Task, room: compiled.Room) -> None:
        """Does no rounds: that compiles, and measures how long it takes, without changing the state."""
        *_, took = self.advance(task, room, self.done)
        self.seconds -= took
        self.compile_seconds += took

    def advance(self, task: _Task, room: compiled.Room, until: int) -> tuple[Rows, Rows, float]:
        """Rounds up to `until`: their metrics, their evaluations, and the seconds they took."""
        began = time.perf_counter()
        bounds = (np.int32(number) for number in (self.done, until, task.stop, task.every))
        self.state, metrics, evaluations = compiled.advance(
            task.algorithm, room, self.state, task.source, task.evaluate, task.key, *bounds
        )
        numbers = np.arange(self.done, until) + 1
        scheduled = (numbers % task.every == 0) | (numbers == task.stop)
        evaluated = numbers[scheduled & (task.evaluate is not None)]
        rows = history.taken(numbers, metrics), history.taken(evaluated, evaluations)
        jax.block_until_ready(self.state)
        took = time.perf_counter() - began
        self.done, self.seconds = until, self.seconds + took
        self.rows.append(rows[0])
        self.evaluations.append(rows[1])
        return *rows, took

    def save(self, store: Store, best: Best | None) -> None:
        """Starts a checkpoint."""
        store.save(self.state, self.done, self.seconds, self.compile_seconds, best)

    def history(self) -> History:
        """Everything measured so far."""
        rows, evaluations = history.joined(self.rows), history.joined(self.evaluations)
        return History(*rows, *evaluations, self.seconds, self.compile_seconds)


def _traced(task: _Task, state: State) -> tuple[PyTree, PyTree]:
    """Shapes of a round's metrics and of an evaluation, once both fit; nothing is compiled for that."""
    drawn = (task.algorithm, state, task.source, task.key, np.int32(0))
    after, metrics = blamed("algorithm.step", compiled.one_round.eval_shape, *drawn)
    verify_same_state(state, after)
    evaluation = blamed("evaluate", compiled.measure.eval_shape, task.evaluate, state)
    return metrics, evaluation


def _opened(
    stack: contextlib.ExitStack,
    settings: Checkpoints,
    task: _Task,
    state: State,
    start: int,
    every: int | None,
    rows: tuple[PyTree, PyTree],
    watch: Watch,
) -> Store:
    """The folder of checkpoints, closed when the run ends."""
    identity = fingerprint.run(
        task.algorithm, state, task.source, task.evaluate, key=task.key, start=start, every=every
    )
    store = Store(settings, identity, *map(history.row, rows), by=watch.by)
    stack.push(lambda kind, error, traceback: store.close(error))
    return store


def _stored(
    store: Store, state: State, mesh: Mesh | None, watch: Watch, start: int, rounds: int
) -> _Course | None:
    """The newest good checkpoint, on the devices of this run."""
    saved = store.newest(state, _places(state, mesh))
    if saved is None:
        return None
    validation.integer(
        "rounds",
        rounds,
        low=saved.done - start,
        fix="So many are done in this checkpoint's folder; ask for more, or choose another.",
    )
    watch.replay(saved.rows, saved.evaluations, saved.best)
    return _Course(
        saved.state,
        saved.done,
        [saved.rows],
        [saved.evaluations],
        saved.seconds,
        saved.compile_seconds,
    )


def _verify_arguments(
    algorithm: Any,
    state: Any,
    rounds: Any,
    key: Any,
    every: Any,
    chunk: Any,
    sinks: Any,
    mesh: Any,
) -> None:
    verify_algorithm("algorithm", algorithm)
    validation.integer("rounds", rounds, low=0)
    validation.typed_key("key", key)
    if every is not None:
        validation.integer("every", every, low=1)
    if chunk is not None:
        validation.integer("chunk", chunk, low=1, high=compiled.MOST)
    verify_state(state)
    validation.instance("sinks", sinks, Sequence, "Pass a list, such as [dflax.sinks.jsonl(path)].")
    for place, sink in enumerate(sinks):
        validation.function(f"sinks[{place}]", sink, "It is called with rounds and metrics.")
    if mesh is not None:
        validation.instance("mesh", mesh, Mesh, "Make one with dflax.client_mesh().")
        if is_planned(mesh):
            raise ValueError(
                f"mesh must be of devices of this machine, got {mesh.devices.size} "
                f"{mesh.devices.flat[0].device_kind} that are not here. dflax.profile.run compiles for "
                "them, and dflax.plan.save keeps rounds to be run there."
            )


def _verify_options(progress: Any, donate: Any, title: Any) -> None:
    if progress is not None:
        validation.flag("progress", progress)
    validation.flag("donate", donate)
    validation.instance("title", title, str)


def _first_round(state: State, start: int | None, rounds: int) -> int:
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
    return start


def _allowed(limit: Limit | None, start: int, rounds: int) -> int:
    """How many of the rounds asked for come before the limit."""
    if limit is None:
        return rounds
    validation.instance("limit", limit, Limit, "For example dflax.privacy.budget(plan, 3.0, 1e-5).")
    validation.integer("limit.rounds", limit.rounds, low=0)
    validation.text("limit.reason", limit.reason)
    return min(rounds, max(limit.rounds - start, 0))


def _warn_of(limit: Limit, last: int, asked: int, *, saved: bool) -> None:
    told = " A checkpoint is saved." if saved else ""
    warnings.warn(
        f"the run ended after round {last} of {asked}: {limit.reason}.{told}",
        LimitReached,
        stacklevel=3,
    )


def _as_evaluation(
    evaluate: Callable[[State], Metrics] | None, every: int | None
) -> Partial | None:
    if evaluate is None:
        if every is not None:
            raise ValueError(
                f"every needs evaluate, got every={every} and nothing to evaluate. stop and keep_best "
                "need it, too."
            )
        return None
    validation.function("evaluate", evaluate, "It gets the state.", takes=1)
    if isinstance(evaluate, OfModel):
        raise TypeError(
            "evaluate must measure a state, got a measure of one model. Say whose model it measures: "
            "evaluation.server_model(measure) for the server's, evaluation.client_models(measure) or "
            "evaluation.mean_model(measure) for those of the clients."
        )
    return evaluate if isinstance(evaluate, Partial) else Partial(evaluate)


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
