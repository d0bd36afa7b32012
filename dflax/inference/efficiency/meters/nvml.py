"""NVIDIA's counters of energy, by nvidia-ml-py (extra `energy`)."""

import importlib
import time
from collections.abc import Callable
from typing import Any

from dflax import validation
from dflax.inference.efficiency.meters.meter import Energy, Meter, MeterError

MILLIJOULES = 1e3


def nvml(
    device: int = 0, *, library: Any = None, clock: Callable[[], float] = time.perf_counter
) -> Meter:
    """A meter of one NVIDIA GPU, whoever keeps it busy: its count of millijoules since the driver began.

    Where the count has fallen, the driver was loaded anew, and the energy is NaN.

    Args:
      device: number of the GPU, >= 0.
      library: what has the functions of pynvml; default pynvml itself.
      clock: `() -> s`.

    Returns:
      A `Meter` with the name "nvml:" and the GPU's.

    Raises:
      MeterError: no pynvml, no driver, no such GPU, or one that does not count (before Volta).
      TypeError, ValueError: naming the argument.
    """
    validation.integer("device", device, low=0)
    validation.function("clock", clock, takes=0)
    if library is not None and not hasattr(library, "nvmlInit"):
        raise TypeError(
            f"library must have the functions of pynvml, got {validation.shown(library)}."
        )
    if library is None:
        try:
            library = importlib.import_module("pynvml")
        except ImportError as error:
            raise MeterError("nvml: pynvml is missing: pip install 'dflax[energy]'.") from error
    try:
        library.nvmlInit()
        handle = library.nvmlDeviceGetHandleByIndex(device)
        kind = library.nvmlDeviceGetName(handle)
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except library.NVMLError as error:
        raise MeterError(f"nvml: GPU {device} cannot be read: {error}.") from error
    name = f"nvml:{kind.decode() if isinstance(kind, bytes) else kind}"

    def begin() -> tuple[float, int]:
        return clock(), library.nvmlDeviceGetTotalEnergyConsumption(handle)

    def since(mark: tuple[float, int]) -> Energy:
        began, before = mark
        counted = library.nvmlDeviceGetTotalEnergyConsumption(handle) - before
        joules = counted / MILLIJOULES if counted >= 0 else float("nan")
        return Energy(joules, clock() - began, name)

    return Meter(name, begin, since)
