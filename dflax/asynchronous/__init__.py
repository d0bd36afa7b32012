"""Servers that do not wait: timetables of arrivals, and the algorithm that follows them."""

from dflax.asynchronous.anarchic import arrivals, clocks
from dflax.asynchronous.compass import Scheduler, fedcompass
from dflax.asynchronous.durations import exponential, from_csv, hardware, log_normal
from dflax.asynchronous.join import join
from dflax.asynchronous.normalised import normalised
from dflax.asynchronous.schedules import (
    SurrogateWarning,
    fedbuff,
    fedfix,
    immediate,
    synchronous,
)
from dflax.asynchronous.server import AsyncClients, AsyncServer, Working, asynchronous_server
from dflax.asynchronous.staleness import constant, hinge, polynomial
from dflax.asynchronous.timetable import Arrival, Timetable, collected
from dflax.asynchronous.waves import Waves, alike, waves

__all__ = [
    "Arrival",
    "AsyncClients",
    "AsyncServer",
    "Scheduler",
    "SurrogateWarning",
    "Timetable",
    "Waves",
    "Working",
    "alike",
    "arrivals",
    "asynchronous_server",
    "clocks",
    "collected",
    "constant",
    "exponential",
    "fedbuff",
    "fedcompass",
    "fedfix",
    "from_csv",
    "hardware",
    "hinge",
    "immediate",
    "join",
    "log_normal",
    "normalised",
    "polynomial",
    "synchronous",
    "waves",
]


def __dir__() -> list[str]:
    return __all__
