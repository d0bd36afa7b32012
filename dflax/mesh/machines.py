"""Accelerators by name: what one device holds, and what a compiler without the device must be told."""

import os
import re
from typing import NamedTuple

import jax

from dflax import validation

GIB = 1 << 30


class Memory(NamedTuple):
    """Bytes of memory of one device.

    Attributes:
      total: that the device has.
      usable: by programs.
      why: what takes the rest, in words.
    """

    total: int
    usable: int
    why: str


class Tpu(NamedTuple):
    """A generation of TPUs.

    Attributes:
      kind: what JAX calls one device.
      memory: bytes of high-bandwidth memory of one device.
      usable: bytes of it that its compiler lets a program have.
      clock: cycles a second.
      sides: 2 or 3, the dimensions of its network.
      most: devices of the largest slice.
      devices: to a chip.
      chip: what libtpu calls a chip whose two cores are one device; "" where that goes without saying.
      accelerator: what Cloud TPU calls a small slice.
    """

    kind: str
    memory: int
    usable: int
    clock: float
    sides: int
    most: int
    devices: int = 1
    chip: str = ""
    accelerator: str = ""


class Gpu(NamedTuple):
    """An NVIDIA GPU; memory is counted in bytes, rates in GHz and bytes a second.

    Attributes:
      kind: what JAX calls it.
      capability: compute capability, (major, minor).
      accelerated: whether code for this architecture alone is wanted (9.0a, 10.0a).
      cores: streaming multiprocessors.
      fpus: float32 units of each.
      memory: of the device.
      bandwidth: of that memory.
      cache: of the second level.
      clock: of the cores.
      shared: memory of a core that its threads share.
      shared_block: what of it a block of threads may ask for.
    """

    kind: str
    capability: tuple[int, int]
    accelerated: bool
    cores: int
    fpus: int
    memory: int
    bandwidth: int
    cache: int
    clock: float
    shared: int
    shared_block: int


# Memory and sizes of slices: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and the pages
# of each generation; the clock follows from the peak given there and the size of the matrix units.
# What is usable is what libtpu 0.0.52 says when it refuses a program.
TPUS = {
    "v4": Tpu(
        "TPU v4", 32 * GIB, int(30.75 * GIB), 1.05e9, 3, 4096,
        chip="megacore", accelerator="v4-8",
    ),
    "v5e": Tpu(
        "TPU v5 lite", 16 * GIB, int(15.75 * GIB), 1.5e9, 2, 256, accelerator="v5litepod-8"
    ),
    "v5p": Tpu("TPU v5", 96 * GIB, int(95.73 * GIB), 1.75e9, 3, 8960, accelerator="v5p-8"),
    "v6e": Tpu("TPU v6 lite", 32 * GIB, int(31.24 * GIB), 1.75e9, 2, 256, accelerator="v6e-8"),
}  # fmt: skip

# Numbers of the devices, as XLA's repository lists them for compiling without one:
# https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs.
GPUS = {
    "A100": Gpu(
        "NVIDIA A100-SXM4-80GB", (8, 0), False, 108, 64, 85_100_068_864, 2_039_040_000_000,
        41_943_040, 1.41, 167_936, 166_912,
    ),
    "A100-40GB": Gpu(
        "NVIDIA A100-SXM4-40GB", (8, 0), False, 108, 64, 42_331_013_120, 1_555_200_000_000,
        41_943_040, 1.41, 167_936, 166_912,
    ),
    "H100": Gpu(
        "NVIDIA H100 80GB HBM3", (9, 0), True, 132, 128, 84_942_979_072, 3_352_320_000_000,
        52_428_800, 1.98, 233_472, 232_448,
    ),
    "H200": Gpu(
        "NVIDIA H200 141GB HBM3e", (9, 0), True, 132, 128, 151_397_597_184, 4_800_000_000_000,
        52_428_800, 1.98, 233_472, 232_448,
    ),
    "B200": Gpu(
        "NVIDIA B200", (10, 0), True, 148, 128, 191_514_411_008, 7_672_320_000_000,
        132_644_864, 1.965, 233_472, 232_448,
    ),
}  # fmt: skip
# GPUs of one host.
HOST = 8
# What JAX takes of a GPU's memory when it starts, unless told otherwise.
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
TAKEN = 0.75
# What a two-dimensional network is sold as, the shorter side first.
FLAT_SLICES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
KNOWN = (
    f'Known are TPUs as "GENERATION:SIDES", {", ".join(TPUS)}, such as "v5e:2x4", "v5e:16x16" and '
    f'"v4:4x4x4", and GPUs as "NUMBERxKIND", {", ".join(GPUS)}, such as "8xH100".'
)


class Machine(NamedTuple):
    """What a name stands for.

    Attributes:
      chip: of which the machine is made.
      sides: of a slice of TPUs; hosts and GPUs of each.
      name: as it was given.
    """

    chip: Tpu | Gpu
    sides: tuple[int, ...]
    name: str


def machine(name: str) -> Machine:
    """The machine of that name.

    Raises:
      TypeError: a name that is no text.
      ValueError: no such machine; known ones are listed.
    """
    validation.text("name", name)
    slices = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if slices is not None and slices[1] in TPUS:
        sides = tuple(int(side) for side in slices[2].split("x"))
        _require_slice(name, slices[1], sides)
        return Machine(TPUS[slices[1]], sides, name)
    counted = re.fullmatch(r"(\d+)x([\w-]+)", name)
    if counted is not None and counted[2] in GPUS:
        return Machine(GPUS[counted[2]], _hosts(name, int(counted[1])), name)
    raise ValueError(f"name must be that of a machine, got {validation.shown(name)}. {KNOWN}")


def memory_of(device: jax.Device) -> Memory | None:
    """The memory of a device, from what it says of itself or else by its kind; None: not known."""
    try:
        told = (device.memory_stats() or {}).get("bytes_limit")
    except (RuntimeError, NotImplementedError, AttributeError):
        told = None
    if told is not None:
        return Memory(told, told, "what the device says it has")
    for tpu in TPUS.values():
        if tpu.kind == device.device_kind:
            return Memory(tpu.memory, tpu.usable, "what its compiler gives a program")
    for gpu in GPUS.values():
        if gpu.kind == device.device_kind:
            share = float(os.environ.get(FRACTION, TAKEN))
            return Memory(gpu.memory, int(share * gpu.memory), f"{share:.2g} of it, {FRACTION}")
    return None


def seconds_of(device: jax.Device, cycles: int | None) -> float | None:
    """How long so many cycles take; None where they or the device's clock are not known."""
    clocks = [tpu.clock for tpu in TPUS.values() if tpu.kind == device.device_kind]
    return cycles / clocks[0] if clocks and cycles is not None else None


def target(gpu: Gpu) -> str:
    """The description of a GPU that XLA's compiler reads, a `GpuTargetConfigProto` in text format."""
    major, minor = gpu.capability
    feature = "ACCELERATED_FEATURES" if gpu.accelerated else "NONE"
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": gpu.shared,
        "shared_memory_per_block_optin": gpu.shared_block,
        "threads_per_core_limit": 2048,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.fpus,
        "block_dim_limit_x": 2_147_483_647,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "memory_bandwidth": gpu.bandwidth,
        "l2_cache_size": gpu.cache,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": gpu.memory,
    }
    lines = "\n".join(f"  {name}: {number}" for name, number in info.items())
    return f"""gpu_device_info {{
{lines}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.kind}"
"""


def _require_slice(name: str, generation: str, sides: tuple[int, ...]) -> None:
    tpu, count = TPUS[generation], 1
    for side in sides:
        count *= side
    if tpu.sides == 2 and tuple(sorted(sides)) not in FLAT_SLICES:
        known = ", ".join("x".join(map(str, flat)) for flat in FLAT_SLICES)
        raise ValueError(f"name must be a slice of {generation}: {known}, got {name!r}.")
    multiples = all(side % 4 == 0 for side in sides) or max(sides) <= 4
    exists = len(sides) == 3 and 0 not in sides and multiples and count <= tpu.most
    if tpu.sides == 3 and not exists:
        raise ValueError(
            f"name must be a slice of {generation}, three sides that are multiples of 4 with at most "
            f'{tpu.most} chips, or at most 4 each, got {name!r}. For example "{generation}:4x4x8".'
        )


def _hosts(name: str, count: int) -> tuple[int, int]:
    if not count or (count > HOST and count % HOST):
        raise ValueError(
            f"name must be of 1 to {HOST} GPUs, or of a multiple of {HOST}, got {name!r}."
        )
    return -(-count // HOST), min(count, HOST)
