"""Right calls of intelligence per watt; meters read what is made up here."""

import itertools
import pathlib
import tempfile
import types

import numpy as np

import dflax as dx
from doors.things import KEY

ipw = dx.inference.efficiency
ONES, TABLE = np.ones((2, 3)), np.ones((2, 1, 3))
MEASURED = ipw.measurements(ONES, TABLE, TABLE)
ROUTE = ipw.oracle(ONES, ONES)
COSTS = {"local": {"energy": ONES}, "cloud": {"energy": np.ones(3)}}
LAPTOP = dx.inference.accelerator(1e12, 1e11, 1e10, idle_watts=5.0, peak_watts=25.0)
NODE = ipw.telemetry([0.0, 1.0], [5.0, 6.0], [0.0], [1.0])
PROFILE = ipw.streaming_profiler(buffer=2).init(KEY).clients
ROUTER = ipw.learned(KEY, np.ones((4, 2)), np.ones((1, 4)), steps=1)
TICKS = itertools.count()
METER = ipw.Meter("ticks", lambda: 0, lambda mark: ipw.Energy(next(TICKS), 1.0, "ticks"))


def processor():
    """A folder with the counter of one package."""
    folder = pathlib.Path(tempfile.mkdtemp())
    zone = folder / "intel-rapl:0"
    zone.mkdir()
    for name, content in (("name", "package-0"), ("energy_uj", "1"), ("max_energy_range_uj", "9")):
        (zone / name).write_text(content)
    return folder


class Tracker:
    """A codecarbon that tracks nothing."""

    def __init__(self, **options):
        self.start_task = self.stop_task = lambda name: None


GPU = types.SimpleNamespace(
    NVMLError=OSError,
    nvmlInit=lambda: None,
    nvmlDeviceGetHandleByIndex=lambda device: device,
    nvmlDeviceGetName=lambda handle: "GPU",
    nvmlDeviceGetTotalEnergyConsumption=lambda handle: 0,
)

CALLS = {
    "inference.efficiency.above": {"confidence": ONES, "cost": ONES, "threshold": 0.5},
    "inference.efficiency.absent_meters": {},
    "inference.efficiency.available_meters": {},
    "inference.efficiency.bootstrap": {
        "key": KEY,
        "statistic": lambda weights: weights.sum(),
        "queries": 3,
        "resamples": 2,
    },
    "inference.efficiency.codecarbon": {
        "library": types.SimpleNamespace(OfflineEmissionsTracker=Tracker)
    },
    "inference.efficiency.confidence": {"router": ROUTER, "features": np.ones((3, 2))},
    "inference.efficiency.coverage": {"accuracy": ONES},
    "inference.efficiency.covered": {"accuracy": ONES},
    "inference.efficiency.decomposition": {"ipw": np.ones((2, 2))},
    "inference.efficiency.drawn": {"key": KEY, "route": ROUTE},
    "inference.efficiency.efficiency": {"measured": MEASURED},
    "inference.efficiency.fleet": {
        "networks": dx.inference.network(1e9, 0.0),
        "accelerators": LAPTOP,
        "accuracy": ONES,
        "input_tokens": np.ones(3),
        "output_tokens": np.ones(3),
    },
    "inference.efficiency.fleet_telemetry": {"nodes": [NODE]},
    "inference.efficiency.frontier": {
        "confidence": ONES,
        "accuracy": ONES,
        **COSTS,
        "thresholds": np.ones(2),
        "by": "energy",
    },
    "inference.efficiency.imperfect": {"route": ROUTE, "accuracy": 0.5},
    "inference.efficiency.item_response": {
        "key": KEY,
        "skill": np.ones(2),
        "difficulty": np.ones(3),
    },
    "inference.efficiency.learned": {
        "key": KEY,
        "features": np.ones((4, 2)),
        "accuracy": np.ones((1, 4)),
        "steps": 1,
    },
    "inference.efficiency.measurements": {"accuracy": ONES, "power": TABLE, "latency": TABLE},
    "inference.efficiency.metered": {
        "function": lambda x: x,
        "arguments": 1.0,
        "meter": METER,
        "seconds": 1e-9,
    },
    "inference.efficiency.modelled": {"accelerator": LAPTOP},
    "inference.efficiency.nvml": {"library": GPU},
    "inference.efficiency.oracle": {"accuracy": ONES, "cost": ONES},
    "inference.efficiency.outcome": {"route": ROUTE, "accuracy": ONES, **COSTS},
    "inference.efficiency.rapl": {"folder": processor()},
    "inference.efficiency.recorded": {"meter": METER, "work": lambda: None},
    "inference.efficiency.segment_mean": {
        "values": np.ones(3),
        "segments": np.zeros(3, int),
        "count": 1,
    },
    "inference.efficiency.streaming_profiler": {},
    "inference.efficiency.summary": {"profile": PROFILE},
    "inference.efficiency.telemetry": {
        "time": [0.0, 1.0],
        "power": [5.0, 6.0],
        "start": [0.0],
        "end": [1.0],
    },
    "inference.efficiency.wrapped": {"before": 1, "now": 2, "largest": 4},
}
