"""Robots in a box: flooding, accusations and blocklists, and what they are good for."""

from dflax.robots.application import Application, Claims, Estimate, Robot, Statement, origins
from dflax.robots.clocks import Clock, time_synchronisation
from dflax.robots.coverage.control import Controller, Feedback, iterated, linear_quadratic, straight
from dflax.robots.coverage.d2oc import Agents, Reference, d2oc
from dflax.robots.coverage.distance import wasserstein
from dflax.robots.coverage.dynamics import Dynamics, double_integrator, quadrotor
from dflax.robots.coverage.lawn_mower import lawn_mower
from dflax.robots.coverage.spectral import Modes, Points, spectral_coverage
from dflax.robots.dbp import Ledger, Swarm, dbp
from dflax.robots.known_value import known_value
from dflax.robots.localisation import localisation
from dflax.robots.matching import maximum_matching
from dflax.robots.motion import Motion, motion, scattered
from dflax.robots.swarm import Bodies, Byzantine, accusing, byzantine
from dflax.robots.tracking import circling, target_tracking
from dflax.robots.w_msr import Averaging, w_msr

__all__ = [
    "Agents",
    "Application",
    "Averaging",
    "Bodies",
    "Byzantine",
    "Claims",
    "Clock",
    "Controller",
    "Dynamics",
    "Estimate",
    "Feedback",
    "Ledger",
    "Modes",
    "Motion",
    "Points",
    "Reference",
    "Robot",
    "Statement",
    "Swarm",
    "accusing",
    "byzantine",
    "circling",
    "d2oc",
    "dbp",
    "double_integrator",
    "iterated",
    "known_value",
    "lawn_mower",
    "linear_quadratic",
    "localisation",
    "maximum_matching",
    "motion",
    "origins",
    "quadrotor",
    "scattered",
    "spectral_coverage",
    "straight",
    "target_tracking",
    "time_synchronisation",
    "w_msr",
    "wasserstein",
]


def __dir__() -> list[str]:
    return __all__
