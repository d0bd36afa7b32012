"""Swarms that flood, accuse and cover; cars that plan for what they cannot see."""

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
from dflax.robots.planning.barrier import Barrier, discrete_barrier
from dflax.robots.planning.bernstein import Curves, bernstein
from dflax.robots.planning.cpto import cpto
from dflax.robots.planning.driving import Drive, Road, Track, driving
from dflax.robots.planning.planner import Plan, Planner, Preferences, planner
from dflax.robots.planning.scene import Costs, Limits, Scene, Start
from dflax.robots.planning.traffic import idm, in_view
from dflax.robots.planning.trajectory import Trajectory, straight_guess
from dflax.robots.swarm import Bodies, Byzantine, accusing, byzantine
from dflax.robots.tracking import circling, target_tracking
from dflax.robots.w_msr import Averaging, w_msr

__all__ = [
    "Agents",
    "Application",
    "Averaging",
    "Barrier",
    "Bodies",
    "Byzantine",
    "Claims",
    "Clock",
    "Controller",
    "Costs",
    "Curves",
    "Drive",
    "Dynamics",
    "Estimate",
    "Feedback",
    "Ledger",
    "Limits",
    "Modes",
    "Motion",
    "Plan",
    "Planner",
    "Points",
    "Preferences",
    "Reference",
    "Road",
    "Robot",
    "Scene",
    "Start",
    "Statement",
    "Swarm",
    "Track",
    "Trajectory",
    "accusing",
    "bernstein",
    "byzantine",
    "circling",
    "cpto",
    "d2oc",
    "dbp",
    "discrete_barrier",
    "double_integrator",
    "driving",
    "idm",
    "in_view",
    "iterated",
    "known_value",
    "lawn_mower",
    "linear_quadratic",
    "localisation",
    "maximum_matching",
    "motion",
    "origins",
    "planner",
    "quadrotor",
    "scattered",
    "spectral_coverage",
    "straight",
    "straight_guess",
    "target_tracking",
    "time_synchronisation",
    "w_msr",
    "wasserstein",
]


def __dir__() -> list[str]:
    return __all__
