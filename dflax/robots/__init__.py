"""Robots in a box: flooding, accusations and blocklists, and what they are good for."""

from dflax.robots.application import Application, Claims, Estimate, Robot, Statement, origins
from dflax.robots.clocks import Clock, time_synchronisation
from dflax.robots.dbp import Ledger, Swarm, dbp
from dflax.robots.known_value import known_value
from dflax.robots.localisation import localisation
from dflax.robots.matching import maximum_matching
from dflax.robots.motion import Motion, motion, scattered
from dflax.robots.swarm import Bodies, Byzantine, accusing, byzantine
from dflax.robots.tracking import circling, target_tracking
from dflax.robots.w_msr import Averaging, w_msr

__all__ = [
    "Application",
    "Averaging",
    "Bodies",
    "Byzantine",
    "Claims",
    "Clock",
    "Estimate",
    "Ledger",
    "Motion",
    "Robot",
    "Statement",
    "Swarm",
    "accusing",
    "byzantine",
    "circling",
    "dbp",
    "known_value",
    "localisation",
    "maximum_matching",
    "motion",
    "origins",
    "scattered",
    "target_tracking",
    "time_synchronisation",
    "w_msr",
]


def __dir__() -> list[str]:
    return __all__
