"""What one round costs: arithmetic, memory, exchanges and time; and a trace of where time goes."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Source, State, rollout
from dflax.blame import blamed
from dflax.clients import client_devices, is_planned
from dflax.mesh import MODEL
from dflax.mesh.machines import Memory, memory_of, seconds_of
from dflax.mesh.planned import without_noise
from dflax.programs.collectives import Collective, collectives, estimated_cycles
from dflax.programs.exchanges import least_sent, noting
from dflax.programs.walk import Operation, fold, inner, operands, results
from dflax.running import rounds as compiled
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

FLOPS = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP")
# Operations that move numbers without computing any.
MOVES = frozenset(
    """
    all_gather all_to_all bitcast_convert_type broadcast_in_dim concatenate convert_element_type copy
    device_put dynamic_slice dynamic_update_slice gather iota name optimization_barrier pad ppermute
    reshape rev scatter select_n sharding_constraint slice sort split squeeze stack stop_gradient
    transpose unstack
    """.split()  # noqa: SIM905
)


# How the compiler for TPUs says that a program does not fit, in its newest words and in older ones.
NEEDED = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM|Used ([\d.]+)([KMGT]?) of")


class TooLargeError(MemoryError):
    """A program that needs more memory than a device has for it.

    Attributes:
      needed: bytes on one device; None where the compiler does not say.
      available: bytes that a device has for programs.
      profile: the program's `Profile`; None where the compiler itself refused it.
    """

    def __init__(self, message: str, needed: int | None, available: int, profile: Any = None):
        super().__init__(message)
        self.needed, self.available, self.profile = needed, available, profile


class Profile(NamedTuple):
    """The costs of a compiled round; sizes are bytes on one device.

    Attributes:
      devices: how many devices run the program together.
      flops: floating-point operations of a round on all devices: 2 for a product and its addition,
        1 for every other elementwise result, loops multiplied out (a loop of unknown length counts
        once, the dearest branch of a conditional counts).
      bytes_accessed: reads and writes of memory as XLA estimates them, the body of a loop counted
        once; None where the backend does not say.
      argument_bytes: state, data set and partition.
      output_bytes: the new state and the metrics.
      alias_bytes: the part of the output that takes the place of an argument: the donated state.
      temporary_bytes: what is needed in between.
      peak_bytes: what must fit at once, `argument + output - alias + temporary`.
      compile_seconds: tracing and compiling; short when a compilation cache had the program.
      collectives: what the devices exchange.
      machine: what JAX calls one of the devices.
      memory: of such a device; None where it is not known.
      members: how many clients take part in a round; None of a source whose rounds do not say.
      places: how many the devices have place for, at least as many: the others compute for nothing.
      undivided: of how many clients every device holds the whole state, because the devices do not
        divide them; None where each device holds its own clients'.
      least_sent_bytes: what one device must send at least for the exchanges of the round's parts: for
        a mean of messages of b bytes over p devices `2 b (p - 1) / p`, for a coordinate-wise rule the
        messages dealt once by coordinates and the result gathered, for gossip each model once to each
        device that hears it.
      estimated_seconds: the time that a device takes by the compiler's own estimate of its cycles, loops
        multiplied out, exchanges left out; None where it gives none, as for GPUs. It is no measurement.
      seconds: steady time of a round; None unless rounds were run to measure it.
    """

    devices: int
    flops: float
    bytes_accessed: float | None
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temporary_bytes: int
    peak_bytes: int
    compile_seconds: float
    collectives: tuple[Collective, ...]
    machine: str = ""
    memory: Memory | None = None
    members: int | None = None
    places: int | None = None
    undivided: int | None = None
    least_sent_bytes: float = 0.0
    estimated_seconds: float | None = None
    seconds: float | None = None

    @property
    def flops_per_second(self) -> float | None:
        """Operations per second that a steady round reaches; None where it was not measured."""
        return None if self.seconds is None else self.flops / self.seconds

    @property
    def sent_bytes(self) -> float:
        """Bytes that one device sends in a round; a loop of unknown length counts once."""
        return sum(c.sent * (1 if c.times is None else c.times) for c in self.collectives)

    def __str__(self) -> str:
        accessed = self.bytes_accessed
        traffic = "not reported" if accessed is None else _bytes(accessed)
        least = _bytes(self.least_sent_bytes)
        rows = [
            ("devices", f"{self.devices} {self.machine}".rstrip()),
            *self._who(),
            ("arithmetic, all devices", _scaled(self.flops, 1000, FLOPS)),
            ("memory traffic, loops once", traffic),
            ("arguments", _bytes(self.argument_bytes)),
            ("outputs", f"{_bytes(self.output_bytes)}, {_bytes(self.alias_bytes)} in place"),
            ("temporaries", _bytes(self.temporary_bytes)),
            ("peak memory", f"{_bytes(self.peak_bytes)}{self._of_memory()}"),
            ("sent per device", f"{_bytes(self.sent_bytes)}, at least {least}"),
            ("compiled in", f"{self.compile_seconds:.2f} s"),
            *((f"  {c.kind}", str(c).removeprefix(c.kind).strip()) for c in self.collectives),
        ]
        if self.estimated_seconds is not None:
            estimate = f"{1e3 * self.estimated_seconds:.4g} ms without exchanges, not measured"
            rows.append(("the compiler's estimate", estimate))
        if self.seconds is not None:
            reached = _scaled(self.flops / self.seconds, 1000, FLOPS)
            rows.append(("a steady round", f"{1e3 * self.seconds:.4g} ms, {reached}/s"))
        return "\n".join(f"{name:<28}{value}" for name, value in rows)

    def _who(self) -> list[tuple[str, str]]:
        if self.members is None or self.places is None:
            return []
        idle = self.places - self.members
        padded = f", padded to {self.places}: {idle} are computed for nothing" if idle else ""
        rows = [("clients of a round", f"{self.members}{padded}")]
        if self.undivided is not None:
            whole = f"of all {self.undivided} clients on every device, which do not divide them"
            rows.append(("state", whole))
        return rows

    def _of_memory(self) -> str:
        if self.memory is None:
            return ""
        share = self.peak_bytes / self.memory.usable
        return f", {100 * share:.3g} % of {_bytes(self.memory.usable)} ({self.memory.why})"


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
        return algorithm.step(state, source.draw(key, index))

    one_key = jax.eval_shape(lambda: jax.random.key(0)) if key is None else key
    members = _members(source, one_key)
    if mesh is None:
        given = shapes((state, source, one_key, jnp.int32(0)))
        found = _measure(jax.jit(one_round, donate_argnums=0).trace, given, members, state)
        placed: Any = (state, source)
    else:
        given, layout = laid_out(mesh, state, source, one_key, jnp.int32(0))
        # Metrics are read by the host, so they are wanted whole.
        outputs = (layout[0], NamedSharding(mesh, PartitionSpec()))
        program = jax.jit(one_round, donate_argnums=0, out_shardings=outputs)
        with jax.set_mesh(mesh):
            found = _measure(program.trace, given, members, state)
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
    return _measure(functools.partial(compiled.advance.trace, own, room), given, members, state)


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


def _measure(
    trace: Callable[..., Any], arguments: tuple[Any, ...], members: int | None, state: State
) -> Profile:
    """Compiles what is traced and reads what it costs, under the mesh that is set.

    Raises:
      TooLargeError: it does not fit into a device's memory.
    """
    began = time.perf_counter()
    with noting():
        traced = blamed("algorithm.step", trace, *arguments)
    devices, one = _devices(arguments)
    machine, memory = "" if one.platform == "cpu" else one.device_kind, memory_of(one)
    held = _held(arguments)
    if memory is not None and held > memory.usable:
        raise TooLargeError(_refusal(held, machine, devices, memory, held), held, memory.usable)
    with without_noise():
        try:
            program = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            raise _too_large(error, machine, devices, memory, held) from error
    seconds = time.perf_counter() - began
    sizes = program.memory_analysis()
    costs, text = program.cost_analysis() or {}, program.as_text()
    along = client_devices()
    found = Profile(
        devices=devices,
        flops=fold(traced.jaxpr, _flops, math.fsum),
        bytes_accessed=costs.get("bytes accessed"),
        argument_bytes=sizes.argument_size_in_bytes,
        output_bytes=sizes.output_size_in_bytes,
        alias_bytes=sizes.alias_size_in_bytes,
        temporary_bytes=sizes.temp_size_in_bytes,
        peak_bytes=sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes,
        compile_seconds=seconds,
        collectives=tuple(collectives(text)),
        machine=machine,
        memory=memory,
        members=members,
        places=None if members is None else along * -(-members // along),
        undivided=_undivided(state, along),
        least_sent_bytes=0.0,
        estimated_seconds=seconds_of(one, estimated_cycles(text)),
    )
    # The compiler may find that nobody reads what is noted.
    least = min(least_sent(traced.jaxpr, along) / _sharing(), found.sent_bytes)
    found = found._replace(least_sent_bytes=least)
    if memory is not None and found.peak_bytes > memory.usable:
        raise TooLargeError(
            _refusal(found.peak_bytes, machine, devices, memory, held),
            found.peak_bytes,
            memory.usable,
            found,
        )
    return found


def _devices(arguments: Any) -> tuple[int, jax.Device]:
    """How many devices the program is for, and one of them."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(arguments)]
    sets = [sharding.device_set for sharding in shardings if sharding is not None]
    devices = max(sets, key=len) if sets else {jax.devices()[0]}
    return len(devices), next(iter(devices))


def _held(arguments: Any) -> int:
    """Bytes of state, data and partition on one device."""

    def share(leaf: Any) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(share, jax.tree.leaves(arguments)))


def _too_large(
    error: Exception, machine: str, devices: int, memory: Memory | None, held: int
) -> Exception:
    """The refusal with the numbers of the compiler's own, or the error itself where it is another."""
    told = str(error)
    if memory is None or "RESOURCE_EXHAUSTED" not in told:
        return error
    number = NEEDED.search(told)
    needed = None
    if number is not None:
        digits, unit = number[1] or number[3], number[2] or number[4] or ""
        needed = int(float(digits) * 1024 ** (" KMGT".index(unit) if unit else 0))
    return TooLargeError(_refusal(needed, machine, devices, memory, held), needed, memory.usable)


def _refusal(needed: int | None, machine: str, devices: int, memory: Memory, held: int) -> str:
    wants = "more" if needed is None else _bytes(needed)
    wants = f"at least {wants}" if needed == held else wants
    return (
        f"a round needs {wants} of memory on each of {devices} {machine}, which has "
        f"{_bytes(memory.usable)} ({memory.why}). State and data are {_bytes(held)} of it. Take more "
        "devices, share each model between some (model=2), deal the data (dflax.data.deal), compute "
        "fewer clients at once (at_once=), or use smaller minibatches."
    )


def _members(source: Source, key: Any) -> int | None:
    """How many clients take part in a round."""
    drawn = jax.eval_shape(lambda source, key: source.draw(key, jnp.int32(0)), source, key)
    weights: Any = getattr(drawn, "weights", None)
    return weights.shape[0] if getattr(weights, "ndim", 0) == 1 else None


def _undivided(state: State, devices: int) -> int | None:
    """Of how many clients every device holds the state, because devices do not divide them."""
    for leaf in jax.tree.leaves(getattr(state, "clients", ())):
        if leaf.shape[0] % devices:
            return leaf.shape[0]
    return None


def _sharing() -> int:
    """Devices that share each model."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(MODEL, 1)


def _flops(operation: Operation, inside: list[float]) -> float:
    """Floating-point operations; XLA's own count takes the body of every loop once."""
    name = operation.primitive.name
    if inside:
        each = [part.times * flops for part, flops in zip(inner(operation), inside, strict=True)]
        return max(each) if name == "cond" else sum(each)
    entries = sum(
        math.prod(result.shape)
        for result in results(operation)
        if jnp.issubdtype(getattr(result, "dtype", jnp.int32), jnp.inexact)
    )
    if not entries or name in MOVES:
        return 0.0
    if name == "dot_general":
        (contracted, _), _ = operation.params["dimension_numbers"]
        left = operands(operation)[0]
        return 2.0 * entries * math.prod(left.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = operands(operation)[1]
        features = kernel.shape[operation.params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * entries * math.prod(kernel.shape) / features
    if name.startswith(("reduce", "scatter")):
        # What is added up counts: the operand, or the updates.
        added = operands(operation)[2 if name.startswith("scatter") else 0]
        return float(math.prod(added.shape))
    return float(entries)


def _bytes(size: float) -> str:
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(number: float, step: int, units: tuple[str, ...]) -> str:
    """A number in the unit that leaves few digits, such as 1.69 MiB."""
    power = 0
    while abs(number) >= step and power < len(units) - 1:
        number, power = number / step, power + 1
    return f"{number:.4g} {units[power]}"


def __dir__() -> list[str]:
    return __all__
