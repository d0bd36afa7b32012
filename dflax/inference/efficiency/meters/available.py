"""Which energy meters this machine has."""

from collections.abc import Callable

from dflax.inference.efficiency.meters.carbon import codecarbon
from dflax.inference.efficiency.meters.meter import Meter, MeterError
from dflax.inference.efficiency.meters.nvml import nvml
from dflax.inference.efficiency.meters.rapl import rapl

METERS: dict[str, Callable[[], Meter]] = {"rapl": rapl, "nvml": nvml, "codecarbon": codecarbon}


def available_meters() -> dict[str, Meter]:
    """The meters that can be read here, by name, ready for use; `modelled` works everywhere."""
    found, _ = _opened()
    return found


def absent_meters() -> dict[str, str]:
    """The meters that cannot be read here, by name, each with the reason."""
    _, reasons = _opened()
    return reasons


def _opened() -> tuple[dict[str, Meter], dict[str, str]]:
    found, reasons = {}, {}
    for name, make in METERS.items():
        try:
            found[name] = make()
        except MeterError as error:
            reasons[name] = str(error)
    return found, reasons
