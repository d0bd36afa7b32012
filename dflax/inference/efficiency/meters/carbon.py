"""The package codecarbon as a meter, to check others by (extra `energy`)."""

import importlib
import itertools
from typing import Any

from dflax import validation
from dflax.inference.efficiency.meters.meter import Energy, Meter, MeterError

JOULES_PER_KILOWATT_HOUR = 3.6e6
PARTS = ("cpu", "gpu", "ram")


def codecarbon(
    *, parts: tuple[str, ...] = ("cpu",), country: str = "USA", library: Any = None
) -> Meter:
    """What codecarbon's offline tracker counts of this process; it asks nothing of the internet.

    Where the machine has counters it reads them, and where not it models power by the processor's load
    and nominal watts, and memory by a constant: its name says which. A mark may be asked once, and one
    at a time.

    Args:
      parts: of "cpu", "gpu", "ram", which are added up.
      country: three letters; it does not matter for energy.
      library: what has `OfflineEmissionsTracker`; default codecarbon itself.

    Returns:
      A `Meter` with the name "codecarbon:" and the modes of its parts.

    Raises:
      MeterError: no codecarbon, or it cannot begin.
      TypeError, ValueError: naming the argument.
    """
    wanted = validation.sequence("parts", parts, f"names of {', '.join(PARTS)}")
    for place, part in enumerate(wanted):
        validation.choice(f"parts[{place}]", part, PARTS)
    validation.text("country", country)
    if library is not None and not hasattr(library, "OfflineEmissionsTracker"):
        raise TypeError(
            f"library must have an OfflineEmissionsTracker, got {validation.shown(library)}."
        )
    if library is None:
        try:
            library = importlib.import_module("codecarbon")
        except ImportError as error:
            missing = "codecarbon: the package is missing: pip install 'dflax[energy]'."
            raise MeterError(missing) from error
    try:
        tracker = library.OfflineEmissionsTracker(
            country_iso_code=country,
            save_to_file=False,
            log_level="error",
            allow_multiple_runs=True,
            tracking_mode="process",
        )
        # Devices are looked for when something is measured first.
        tracker.start_task("dflax")
        tracker.stop_task("dflax")
    except Exception as error:
        raise MeterError(f"codecarbon: the tracker cannot begin: {error}.") from error
    modes = ",".join(str(device) for device in getattr(tracker, "_hardware", ()))
    name = f"codecarbon:{'+'.join(wanted)} ({modes})"
    numbers = itertools.count()
    running: set[str] = set()

    def begin() -> str:
        if running:
            raise RuntimeError("codecarbon measures one mark at a time; ask the last one first.")
        mark = f"dflax {next(numbers)}"
        tracker.start_task(mark)
        running.add(mark)
        return mark

    def since(mark: str) -> Energy:
        if mark not in running:
            raise RuntimeError(f"codecarbon tells of a mark once, and {mark!r} is not running.")
        running.remove(mark)
        found = tracker.stop_task(mark)
        used = sum(getattr(found, f"{part}_energy") for part in wanted)
        return Energy(used * JOULES_PER_KILOWATT_HOUR, found.duration, name)

    return Meter(name, begin, since)
