"""A traced program compiled for its devices, and what its compiler says that it costs."""

import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from dflax.algorithm import State
from dflax.blame import blamed
from dflax.clients import client_devices, model_devices
from dflax.mesh.machines import Memory, memory_of, seconds_of
from dflax.mesh.planned import without_noise
from dflax.programs.arithmetic import operations
from dflax.programs.collectives import collectives, estimated_cycles
from dflax.programs.exchanges import least_sent, noting
from dflax.running.costs import Profile, TooLargeError, in_bytes

# How the compiler for TPUs says that a program does not fit, in its newest words and in older ones.
NEEDED = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM|Used ([\d.]+)([KMGT]?) of")


def measured(
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
            program = _compiled(traced.lower(), one)
        except jax.errors.JaxRuntimeError as error:
            raise _too_large(error, machine, devices, memory, held) from error
    seconds = time.perf_counter() - began
    sizes = program.memory_analysis()
    costs, text = program.cost_analysis() or {}, program.as_text()
    along = client_devices()
    found = Profile(
        devices=devices,
        flops=operations(traced.jaxpr),
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
        sharing=model_devices(),
        estimated_seconds=seconds_of(one, estimated_cycles(text)),
    )
    # The compiler may find that nobody reads what is noted.
    between = found.sent_bytes - found.sent_within_models
    least = min(least_sent(traced.jaxpr, along) / model_devices(), between)
    found = found._replace(least_sent_bytes=least)
    if memory is not None and found.peak_bytes > memory.usable:
        raise TooLargeError(
            _refusal(found.peak_bytes, machine, devices, memory, held),
            found.peak_bytes,
            memory.usable,
            found,
        )
    return found


def _compiled(lowered: Any, device: jax.Device) -> Any:
    """The program for devices like this one.

    Where kernels of Triton cannot be timed, products are tiled by rules, and those know
    no tiles for some shapes; cuBLAS multiplies any.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if device.platform not in ("gpu", "cuda") or "output tile sizes" not in str(error):
            raise
    return lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})


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
    wants = "more" if needed is None else in_bytes(needed)
    wants = f"at least {wants}" if needed == held else wants
    return (
        f"a round needs {wants} of memory on each of {devices} {machine}, which has "
        f"{in_bytes(memory.usable)} ({memory.why}). State and data are {in_bytes(held)} of it. Take "
        "more devices, share each model between some (model=2), deal the data (dflax.data.deal), "
        "compute fewer clients at once (at_once=), or use smaller minibatches."
    )


def _undivided(state: State, devices: int) -> int | None:
    """Of how many clients every device holds the state, because devices do not divide them."""
    for leaf in jax.tree.leaves(getattr(state, "clients", ())):
        if leaf.shape[0] % devices:
            return leaf.shape[0]
    return None
