"""A meter for machines without one: power by a law of how busy the processor is."""

import os
import time
from collections.abc import Callable

from dflax import validation
from dflax.inference.efficiency.meters.meter import Energy, Meter
from dflax.inference.hardware import Accelerator, power


def modelled(
    accelerator: Accelerator,
    *,
    name: str = "modelled",
    cores: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    busy: Callable[[], float] = time.process_time,
) -> Meter:
    """Energy as E = [P_idle + (P_peak - P_idle) u] t, with u the share of the cores' time that is used.

        u = min(1, (busy seconds since the mark) / (cores * t))

    It measures time, of the clock and of this process on all its cores; the watts are assumed. So it
    ranks programs by the work they make, and says nothing of how much a watt of that work costs.

    Args:
      accelerator: whose idle and peak watts count, one number each, the peak >= the idle.
      name: of the meter, with what the watts are taken from.
      cores: >= 1; default those that this process may use.
      clock: `() -> s`.
      busy: `() -> s` of processor time.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("accelerator", accelerator, Accelerator)
    idle, peak = accelerator.idle_watts, accelerator.peak_watts
    validation.real("accelerator.idle_watts", idle, low=0.0, scalar=True)
    validation.real("accelerator.peak_watts", peak, low=float(idle), scalar=True)
    validation.text("name", name)
    if cores is not None:
        validation.integer("cores", cores, low=1)
    validation.function("clock", clock, takes=0)
    validation.function("busy", busy, takes=0)
    count = cores or _cores()

    def begin() -> tuple[float, float]:
        return clock(), busy()

    def since(mark: tuple[float, float]) -> Energy:
        seconds, worked = clock() - mark[0], busy() - mark[1]
        share = min(max(worked / (count * seconds), 0.0), 1.0) if seconds > 0 else 0.0
        return Energy(float(power(accelerator, share)) * seconds, seconds, name)

    return Meter(name, begin, since)


def _cores() -> int:
    """Those that this process may use, where the system says."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
