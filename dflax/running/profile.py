"""What one round costs: arithmetic, memory, exchanges and time; and a trace of where time goes."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Source, State, rollout, stepped
from dflax.blame import blamed
from dflax.clients import is_planned
from dflax.programs.collectives import Collective, collectives
from dflax.running import rounds as compiled
from dflax.running.compiled_costs import measured
from dflax.running.costs import Profile, TooLargeError
from dflax.running.shapes import laid_out, shapes
from dflax.running.sweep import prepared

__all__ = [
    "Collective",
    "Profile",
    "TooLargeError",
    "collectives",
    "round",
    "run",
    "sweep",
    "trace",
]


def round(
    algorithm: Algorithm,
    state: State,
    source: Source,
    *,
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
    measured_rounds: int = 0,
) -> Profile:
    """Compiles one round, `algorithm.step(state, source.draw(key, t))`, and reports what it costs.

    Nothing is executed and nothing is put on a device, so shapes are enough: a state from
    `jax.eval_shape(algorithm.init, key, params)` profiles a federation that this machine could not
    hold. The state is donated, as `dflax.run` does. With `measured_rounds` the rounds are run as
    well, and the time of one is told.

    Args:
      algorithm: whose step is profiled.
      state: arrays, or `jax.ShapeDtypeStruct`s in their place.
      source: hands out the rounds, for example a `Federation`; a pytree of arrays or of shapes.
        With a mesh it is replicated, but for arrays that lie on the mesh already.
      key: the run's typed key, of which only the kind matters; default that of `jax.random.key(0)`.
      mesh: devices to deal the clients over, by `dflax.mesh.state_sharding`; a mesh with the axis
        "clients", of this machine or of one that is not here (`dflax.mesh.planned`). Default: one
        device.
      measured_rounds: R >= 0; when positive, `state` and `source` must be arrays: R rounds run as
        one compiled scan, once to warm up and three times for the least time per round.

    Returns:
      A `Profile`; print it for a table.

    Raises:
      TypeError: arguments of other types.
      ValueError: a mesh without the axis "clients"; shapes in place of arrays, or a machine that is not
        here, where rounds are to be run.
      TooLargeError: the round does not fit into a device's memory, with both numbers.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> algorithm = dx.server.fedavg(dx.data.quadratic_loss, optax.sgd(0.5))
      >>> shapes = jax.eval_shape(algorithm.init, jax.random.key(0), jnp.zeros(3))
      >>> cost = dx.profile.round(algorithm, shapes, federation)
      >>> cost.flops > 0, cost.collectives
      (True, ())
    """
    validation.integer("measured_rounds", measured_rounds, low=0)
    _verify(algorithm, state, source, key, mesh)
    if measured_rounds and not _are_arrays((state, source)):
        raise ValueError(
            f"measured_rounds must be 0 where state or source are shapes, got {measured_rounds}. Pass "
            "arrays, as algorithm.init(key, params) returns them."
        )
    if mesh is not None and measured_rounds and is_planned(mesh):
        raise ValueError(
            f"measured_rounds must be 0 on a mesh of a machine that is not here, got {measured_rounds}. "
            "Programs for it can be compiled and not run."
        )

    def one_round(
        state: State, source: Source, key: Array, index: Int[Array, ""]
    ) -> tuple[State, Metrics]:
        return stepped(algorithm, state, source.draw(key, index))

    one_key = jax.eval_shape(lambda: jax.random.key(0)) if key is None else key
    members = _members(source, one_key)
    if mesh is None:
        given = shapes((state, source, one_key, jnp.int32(0)))
        found = measured(jax.jit(one_round, donate_argnums=0).trace, given, members, state)
        placed: Any = (state, source)
    else:
        given, layout = laid_out(mesh, state, source, one_key, jnp.int32(0))
        # Metrics are read by the host, so they are wanted whole.
        outputs = (layout[0], NamedSharding(mesh, PartitionSpec()))
        program = jax.jit(one_round, donate_argnums=0, out_shardings=outputs)
        with jax.set_mesh(mesh):
            found = measured(program.trace, given, members, state)
        placed = jax.device_put((state, source), layout[:2]) if measured_rounds else ()
    if not measured_rounds:
        return found
    run_key = jax.random.key(0) if key is None else key
    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        seconds = _seconds(algorithm, placed[0], placed[1], run_key, measured_rounds)
    return found._replace(seconds=seconds)


def run(
    algorithm: Algorithm,
    state: State,
    source: Source,
    *,
    evaluate: Callable[[State], Metrics] | None = None,
    key: Key[Array, ""] | None = None,
    mesh: Mesh | None = None,
) -> Profile:
    """Compiles the program of `dflax.run(algorithm, state, source, ...)` and reports what it costs.

    It has a loop around the round, room for metrics, and the evaluation in it: what it needs beyond
    `round` tells what those cost. Arithmetic and exchanges are those of one round and one evaluation.
    Nothing is executed and nothing is put on a device.

    Args:
      algorithm: whose rounds are run.
      state: arrays, or `jax.ShapeDtypeStruct`s in their place.
      source: of the rounds; arrays or shapes.
      evaluate: as for `dflax.run`.
      key: the run's typed key, of which only the kind matters.
      mesh: as for `round`; default one device.

    Returns:
      A `Profile`.

    Raises:
      TypeError, ValueError, TooLargeError: as `round`.
    """
    _verify(algorithm, state, source, key, mesh)
    if evaluate is not None:
        validation.function("evaluate", evaluate, "It gets the state.", takes=1)
    measure = evaluate if evaluate is None or isinstance(evaluate, Partial) else Partial(evaluate)
    one_key = jax.eval_shape(lambda: jax.random.key(0)) if key is None else key
    members = _members(source, one_key)
    others = (source, measure, one_key, *(jnp.int32(0),) * 4)
    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        if mesh is None:
            given = shapes((state, *others))
        else:
            given, _ = laid_out(mesh, state, *others)
        return _of_run(algorithm, given, members)


def sweep(
    factory: Callable[..., Algorithm],
    start: Callable[[Algorithm, Key[Array, ""]], State],
    source: Source | None = None,
    *,
    sources: Sequence[Source] | None = None,
    grid: Mapping[str, Sequence[float]],
    key: Key[Array, ""],
    seeds: int | None = None,
    evaluate: Callable[[State], Metrics] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Profile:
    """Compiles the program of `dflax.sweep` with these arguments and reports what it costs.

    Arithmetic and exchanges are those of one round of all points, and one evaluation. Nothing is run.

    Args:
      factory: as for `dflax.sweep`, and so are all others.
      start: as there.
      source: as there.
      sources: as there.
      grid: as there.
      key: as there.
      seeds: as there.
      evaluate: as there.
      devices: to split the points over; of a machine that is not here `list(mesh.devices.flat)` of
        a `dflax.mesh.planned`. Default: all of this machine.

    Returns:
      A `Profile`.

    Raises:
      TypeError, ValueError, TooLargeError: as `dflax.sweep` and `round`.
    """
    ready = prepared(
        factory, start, source, sources=sources, grid=grid, key=key, rounds=1, seeds=seeds,
        evaluate=evaluate, every=None, devices=devices,
    )  # fmt: skip
    given = shapes(ready.given)
    values, keys, own = given
    points, shared = ready.points(values, keys, own, jax.eval_shape(ready.begin, values, keys))
    split, whole = ready.split, NamedSharding(ready.split.mesh, PartitionSpec())

    def laid(tree: Any, where: NamedSharding) -> Any:
        return jax.tree.map(lambda leaf: leaf.update(sharding=where), shapes(tree))

    state = points._replace(
        round=laid(points.round, whole),
        **{name: laid(getattr(points, name), split) for name in ("values", "keys", "states")},
    )
    source_shapes = dataclasses.replace(shared.sources, shared=laid(shared.sources.shared, whole))
    drawn = shared._replace(sources=source_shapes, own=laid(shared.own, split))
    others = laid((ready.measure, key, *(jnp.int32(0),) * 4), whole)
    return _of_run(ready.algorithm, (state, drawn, *others), None)


def trace(
    folder: str | pathlib.Path, function: Callable[..., Any], *arguments: Any
) -> pathlib.Path:
    """Run `function(*arguments)` once to warm up, and once more under JAX's profiler.

    Open the file at https://ui.perfetto.dev: one bar per operation of the compiled program, on every
    thread or device, with the gaps between them. Calls of Python are left out.

    Args:
      folder: where the trace goes; made when missing.
      function: usually a compiled one; what it returns is waited for.
      *arguments: of the function; none of them may be donated.

    Returns:
      The path of the Perfetto trace, a `.json.gz`.

    Raises:
      TypeError: a folder that is no path, a function that cannot be called.
    """
    validation.path("folder", folder)
    validation.function("function", function)
    jax.block_until_ready(function(*arguments))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    before = set(pathlib.Path(folder).rglob("perfetto_trace.json.gz"))
    with jax.profiler.trace(str(folder), create_perfetto_trace=True, profiler_options=options):
        jax.block_until_ready(function(*arguments))
    made = set(pathlib.Path(folder).rglob("perfetto_trace.json.gz")) - before
    # Traces of the same second share a folder of JAX's, and the later replaces the earlier.
    return max(made or before, key=lambda path: path.stat().st_mtime)


def _seconds(algorithm: Algorithm, state: State, source: Any, key: Array, rounds: int) -> float:
    """The least of three timings of a steady round, after a first call that compiles."""
    program = jax.jit(functools.partial(rollout, algorithm, rounds=rounds))
    jax.block_until_ready(program(state, source, key))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(program(state, source, key))
        times.append((time.perf_counter() - began) / rounds)
    return min(times)


def _of_run(algorithm: Algorithm, given: tuple[Any, ...], members: int | None) -> Profile:
    """Of the program of a run, given shapes of state, source, evaluation, key and four numbers."""
    state, source, evaluate, *rest = given
    drawn = (algorithm, state, source, *rest[:2])
    _, metrics = blamed("algorithm.step", compiled.one_round.eval_shape, *drawn)
    evaluations = blamed("evaluate", compiled.measure.eval_shape, evaluate, state)
    # An algorithm of its own, so that its rounds are traced anew, with what they note.
    own = Algorithm(algorithm.init, lambda state, round: algorithm.step(state, round))
    room = compiled.room(metrics, evaluations)
    return measured(functools.partial(compiled.advance.trace, own, room), given, members, state)


def _verify(algorithm: Any, state: Any, source: Any, key: Any, mesh: Any) -> None:
    validation.arrays("state", state, "Make one with algorithm.init(key, params).", some=True)
    if not isinstance(algorithm, Algorithm):
        raise TypeError(
            f"algorithm must be an Algorithm, got {type(algorithm).__name__}. Pass what a factory "
            "such as dflax.server.fedavg returns."
        )
    if not hasattr(source, "draw"):
        raise TypeError(
            f"source must have a method draw(key, index), got {type(source).__name__}. Pass a "
            "dflax.Federation."
        )
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh must be a jax Mesh or None, got {type(mesh).__name__}. Make one with "
            "dflax.client_mesh()."
        )
    if key is not None:
        validation.typed_key("key", key)


def _are_arrays(tree: Any) -> bool:
    return not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def _members(source: Source, key: Any) -> int | None:
    """How many clients take part in a round."""
    drawn = jax.eval_shape(lambda source, key: source.draw(key, jnp.int32(0)), source, key)
    weights: Any = getattr(drawn, "weights", None)
    return weights.shape[0] if getattr(weights, "ndim", 0) == 1 else None


def __dir__() -> list[str]:
    return __all__
