"""Intelligence per watt: metrics, routing, a streaming profiler, and energy meters."""

from dflax.inference.efficiency.bootstrap import Interval, bootstrap
from dflax.inference.efficiency.coverage import coverage, covered
from dflax.inference.efficiency.fleet import Fleet, fleet, item_response
from dflax.inference.efficiency.longitudinal import Decomposition, decomposition
from dflax.inference.efficiency.meters.available import absent_meters, available_meters
from dflax.inference.efficiency.meters.carbon import codecarbon
from dflax.inference.efficiency.meters.meter import Energy, Meter, MeterError
from dflax.inference.efficiency.meters.metered import Recording, Run, metered, recorded
from dflax.inference.efficiency.meters.modelled import modelled
from dflax.inference.efficiency.meters.nvml import nvml
from dflax.inference.efficiency.meters.rapl import rapl, wrapped
from dflax.inference.efficiency.metrics import (
    Efficiency,
    Measurements,
    efficiency,
    measurements,
)
from dflax.inference.efficiency.moments import Line
from dflax.inference.efficiency.profiler import Profile, Summary, streaming_profiler, summary
from dflax.inference.efficiency.router import Router, confidence, frontier, learned
from dflax.inference.efficiency.routing import (
    Outcome,
    Route,
    above,
    drawn,
    imperfect,
    oracle,
    outcome,
)
from dflax.inference.efficiency.segments import segment_mean
from dflax.inference.efficiency.telemetry import Reading, fleet_telemetry, telemetry

__all__ = [
    "Decomposition",
    "Efficiency",
    "Energy",
    "Fleet",
    "Interval",
    "Line",
    "Measurements",
    "Meter",
    "MeterError",
    "Outcome",
    "Profile",
    "Reading",
    "Recording",
    "Route",
    "Router",
    "Run",
    "Summary",
    "above",
    "absent_meters",
    "available_meters",
    "bootstrap",
    "codecarbon",
    "confidence",
    "coverage",
    "covered",
    "decomposition",
    "drawn",
    "efficiency",
    "fleet",
    "fleet_telemetry",
    "frontier",
    "imperfect",
    "item_response",
    "learned",
    "measurements",
    "metered",
    "modelled",
    "nvml",
    "oracle",
    "outcome",
    "rapl",
    "recorded",
    "segment_mean",
    "streaming_profiler",
    "summary",
    "telemetry",
    "wrapped",
]


def __dir__() -> list[str]:
    return __all__
