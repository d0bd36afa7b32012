"""Linux' powercap counters of RAPL: energy of processor packages and memory, in microjoules."""

import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from dflax import validation
from dflax.inference.efficiency.meters.meter import Energy, Meter, MeterError

POWERCAP = "/sys/class/powercap"
MICROJOULES = 1e6


def wrapped(before: int, now: int, largest: int) -> int:
    """What a counter has counted that starts again at 0 after `largest`, if it did so at most once.

    Args:
      before: its value at first, in [0, largest].
      now: its value now, in [0, largest].
      largest: the range that it advertises, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("largest", largest, low=1, high=2**63)
    validation.integer("before", before, low=0, high=largest)
    validation.integer("now", now, low=0, high=largest)
    return now - before if now >= before else now - before + largest


def rapl(
    *,
    domains: Sequence[str] = ("package",),
    folder: str | os.PathLike = POWERCAP,
    clock: Callable[[], float] = time.perf_counter,
) -> Meter:
    """A meter of this machine's processors, whoever keeps them busy.

    A counter wraps at its `max_energy_range_uj`, often 262 kJ: 44 minutes at 100 W. Ask at least once in
    that time, for it is added once where the difference is negative.

    Args:
      domains: of "package", "core", "uncore", "dram", "psys": those whose names begin so are added up.
        "core" is a part of "package" and "psys" contains it.
      folder: where the kernel shows the counters.
      clock: `() -> s`.

    Returns:
      A `Meter` with the name "rapl:" and the domains.

    Raises:
      MeterError: no such counters, or no right to read them (most systems let root alone).
      TypeError, ValueError: naming the argument.
    """
    wanted = validation.sequence("domains", domains, "names of domains")
    for place, name in enumerate(wanted):
        validation.text(f"domains[{place}]", name)
    validation.path("folder", folder)
    validation.function("clock", clock, takes=0)
    zones = [
        zone
        for zone in sorted(pathlib.Path(folder).glob("intel-rapl:*"))
        if (zone / "name").exists()
        and (zone / "name").read_text().strip().startswith(tuple(wanted))
    ]
    if not zones:
        raise MeterError(
            f"rapl: no counter of {', '.join(wanted)} in {os.fspath(folder)}. Virtual machines and "
            "other systems than Linux have none; see available_meters()."
        )
    ranges = {zone: _number(zone / "max_energy_range_uj") for zone in zones}

    def read() -> dict[pathlib.Path, int]:
        return {zone: _number(zone / "energy_uj") for zone in zones}

    name = f"rapl:{'+'.join(wanted)}"
    # What was added up at each mark, so that marks that are asked often may run through many ranges.
    total: dict[str, Any] = {"joules": 0.0, "counters": read()}

    def advanced() -> float:
        now = read()
        steps = (wrapped(total["counters"][zone], now[zone], ranges[zone]) for zone in zones)
        total["joules"] += sum(steps) / MICROJOULES
        total["counters"] = now
        return total["joules"]

    def begin() -> tuple[float, float]:
        return clock(), advanced()

    def since(mark: tuple[float, float]) -> Energy:
        began, before = mark
        return Energy(advanced() - before, clock() - began, name)

    return Meter(name, begin, since)


def _number(path: pathlib.Path) -> int:
    try:
        return int(path.read_text())
    except PermissionError as error:
        raise MeterError(
            f"rapl: {path} may not be read. Run as root, or grant the right."
        ) from error
    except (OSError, ValueError) as error:
        raise MeterError(f"rapl: {path} cannot be read: {error}.") from error
