"""Right calls of servers that do not wait."""

import numpy as np

from dflax import asynchronous
from doors.things import CHANNEL, FEDERATION, LOSS, OPTIMIZER, N

TIMES = np.array([1.0, 0.5, 0.8, 0.7])
EQUAL = np.full(N, 0.25)
TABLE = asynchronous.fedbuff(TIMES, N, 3.0)
CUT = asynchronous.waves(TABLE)
TIMED = {"durations": TIMES, "horizon": 6.0, "importance": EQUAL}

CALLS = {
    "asynchronous.Scheduler": {"least": 2, "most": 4, "slack": 1.2, "momentum": 0.9},
    "asynchronous.alike": {"cuts": [CUT, CUT]},
    "asynchronous.arrivals": {
        "clients": N,
        "collect": 2,
        "rounds": 4,
        "probabilities": EQUAL,
        "seed": 0,
    },
    "asynchronous.asynchronous_server": {
        "loss": LOSS,
        "optimizer": OPTIMIZER,
        "timetable": CUT,
        "server_optimizer": OPTIMIZER,
        "discount": asynchronous.constant(),
        "channel": CHANNEL,
        "at_once": 1,
    },
    "asynchronous.clocks": {
        "idle": TIMES,
        "step_seconds": TIMES,
        "collect": 2,
        "horizon": 9.0,
        "seed": 0,
    },
    "asynchronous.collected": {
        "population": N,
        "steps": [(1.0, [asynchronous.Arrival(0, 0, 1, 1.0)])],
    },
    "asynchronous.constant": {},
    "asynchronous.exponential": {"clients": N, "pieces": 2, "seed": 0},
    "asynchronous.fedbuff": {**TIMED, "buffer": 2},
    "asynchronous.fedcompass": {
        "speeds": TIMES,
        "horizon": 20.0,
        "least": 2,
        "most": 4,
        "importance": EQUAL,
    },
    "asynchronous.fedfix": {**TIMED, "tick": 0.6},
    "asynchronous.from_csv": {"path": "times.csv"},
    "asynchronous.hardware": {"clients": N, "spread": 50.0},
    "asynchronous.hinge": {},
    "asynchronous.immediate": TIMED,
    "asynchronous.join": {"federation": FEDERATION, "cut": CUT},
    "asynchronous.log_normal": {"clients": N, "pieces": 2, "seed": 0},
    "asynchronous.normalised": {"timetable": TABLE},
    "asynchronous.polynomial": {},
    "asynchronous.synchronous": TIMED,
    "asynchronous.waves": {"timetable": TABLE, "width": N, "chunk": 2, "steps": 1},
    "recipes.afa": {
        "loss": LOSS,
        "worker_rate": 0.1,
        "server_rate": 0.1,
        "timetable": CUT,
    },
}
