"""What one round costs: arithmetic, memory, exchanges and time; and a trace of where time goes."""

import functools
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Source, State, rollout
from dflax.blame import blamed
from dflax.mesh import state_sharding
from dflax.programs.collectives import Collective, collectives
from dflax.programs.walk import Operation, fold, inner, operands, results

__all__ = ["Collective", "Profile", "collectives", "round", "trace"]

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
        rows = [
            ("devices", str(self.devices)),
            ("arithmetic, all devices", _scaled(self.flops, 1000, FLOPS)),
            ("memory traffic, loops once", traffic),
            ("arguments", _bytes(self.argument_bytes)),
            ("outputs", f"{_bytes(self.output_bytes)}, {_bytes(self.alias_bytes)} in place"),
            ("temporaries", _bytes(self.temporary_bytes)),
            ("peak memory", _bytes(self.peak_bytes)),
            ("sent per device", _bytes(self.sent_bytes)),
            ("compiled in", f"{self.compile_seconds:.2f} s"),
            *((f"  {c.kind}", str(c).removeprefix(c.kind).strip()) for c in self.collectives),
        ]
        if self.seconds is not None:
            reached = _scaled(self.flops / self.seconds, 1000, FLOPS)
            rows.append(("a steady round", f"{1e3 * self.seconds:.4g} ms, {reached}/s"))
        return "\n".join(f"{name:<28}{value}" for name, value in rows)


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
        "clients". Default: one device.
      measured_rounds: R >= 0; when positive, `state` and `source` must be arrays: R rounds run as
        one compiled scan, once to warm up and three times for the least time per round.

    Returns:
      A `Profile`; print it for a table.

    Raises:
      TypeError: arguments of other types.
      ValueError: a mesh without the axis "clients"; shapes in place of arrays that are to be run.
    """
    validation.integer("measured_rounds", measured_rounds, low=0)
    validation.arrays("state", state, "Make one with algorithm.init(key, params).", some=True)
    if measured_rounds and not _are_arrays((state, source)):
        raise ValueError(
            f"measured_rounds must be 0 where state or source are shapes, got {measured_rounds}. Pass "
            "arrays, as algorithm.init(key, params) returns them."
        )
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

    def one_round(
        state: State, source: Source, key: Array, index: Int[Array, ""]
    ) -> tuple[State, Metrics]:
        return algorithm.step(state, source.draw(key, index))

    def with_time(found: Profile, place: Callable[[Any], Any] = lambda given: given) -> Profile:
        if not measured_rounds:
            return found
        run_key = jax.random.key(0) if key is None else key
        placed_state, placed_source, run_key = place((state, source, run_key))
        seconds = _seconds(algorithm, placed_state, placed_source, run_key, measured_rounds)
        return found._replace(seconds=seconds)

    one_key = jax.eval_shape(lambda: jax.random.key(0)) if key is None else key
    given = _shapes((state, source, one_key, jnp.int32(0)))
    if mesh is None:
        return with_time(_measure(jax.jit(one_round, donate_argnums=0), given))
    everywhere = NamedSharding(mesh, PartitionSpec())
    layout = state_sharding(given[0], mesh)
    placed = jax.tree.map(
        lambda leaf: leaf.sharding if _lies_on(leaf, mesh) else everywhere,
        (source, one_key, jnp.int32(0)),
    )
    laid_out = jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding), given, (layout, *placed)
    )
    # Metrics are read by the host, so they are wanted whole.
    program = jax.jit(one_round, donate_argnums=0, out_shardings=(layout, everywhere))
    with jax.set_mesh(mesh):
        return with_time(
            _measure(program, laid_out),
            lambda given: jax.device_put(given, (layout, *placed[:2])),
        )


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


def _are_arrays(tree: Any) -> bool:
    return not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def _measure(program: Any, arguments: tuple[Any, ...]) -> Profile:
    began = time.perf_counter()
    traced = blamed("algorithm.step", program.trace, *arguments)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}
    shardings = jax.tree.leaves(compiled.input_shardings)
    return Profile(
        devices=max((len(sharding.device_set) for sharding in shardings), default=1),
        flops=fold(traced.jaxpr, _flops, math.fsum),
        bytes_accessed=costs.get("bytes accessed"),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        compile_seconds=seconds,
        collectives=tuple(collectives(compiled)),
    )


def _shapes(tree: Any) -> Any:
    """The tree with shapes for arrays, wherever these lie."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=leaf.weak_type),
        jax.eval_shape(lambda tree: tree, tree),
    )


def _lies_on(leaf: Any, mesh: Mesh) -> bool:
    """Whether an array has been dealt over this mesh already, and stays where it is."""
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and sharding.mesh == mesh


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
