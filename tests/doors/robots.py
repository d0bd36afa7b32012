"""Right calls of the robots' room."""

import numpy as np

import dflax as dx
from doors.things import KEY, N

SOME = np.arange(N) < 2
APPLICATION = dx.robots.known_value(SOME, value=10.0, lie=-50.0)
SWARM = {
    "application": APPLICATION,
    "liars": dx.robots.byzantine(~SOME),
    "motion": dx.robots.motion(0.0),
}

POINT = dx.robots.double_integrator()
LAW = dx.robots.straight(POINT, 1.0)

CURVES = dx.robots.bernstein(7, 1.0, 5)
EMPTY = np.zeros((1, 1, 2, 7))
START = dx.robots.Start(np.zeros(2), np.ones(2), np.zeros(()), np.zeros(()))
SCENE = dx.robots.Scene(START, EMPTY, EMPTY, np.ones(1), np.ones(1))

CALLS = {
    "robots.bernstein": {},
    "robots.cpto": {"curves": CURVES, "hypotheses": 1, "obstacles": 1, "shared": 2},
    "robots.discrete_barrier": {"rate": 0.5, "steps": 4},
    "robots.driving": {
        "planner": dx.robots.planner(CURVES, 1, 1, shared=2),
        "steps": 2,
        "imagined": np.ones((1, 1), bool),
    },
    "robots.idm": {"gap": 10.0, "speed": 5.0, "closing": 1.0, "wanted": 8.0},
    "robots.in_view": {
        "eye": np.zeros(2),
        "targets": np.ones((1, 2)),
        "centres": np.ones((1, 2)),
        "axes": np.ones((1, 2)),
    },
    "robots.planner": {"curves": CURVES, "hypotheses": 1, "obstacles": 1, "shared": 2},
    "robots.straight_guess": {"curves": CURVES, "scene": SCENE},
    "robots.d2oc": {"dynamics": POINT, "controller": LAW, "agents": N, "steps": 4},
    "robots.double_integrator": {},
    "robots.iterated": {"dynamics": POINT, "horizon": 2, "input_cost": 1.0},
    "robots.lawn_mower": {"agents": N, "steps": 4},
    "robots.linear_quadratic": {"dynamics": POINT, "horizon": 2, "input_cost": 1.0},
    "robots.quadrotor": {},
    "robots.spectral_coverage": {"agents": N, "steps": 4, "speed": 0.1},
    "robots.straight": {"dynamics": POINT, "speed": 1.0},
    "robots.wasserstein": {"visited": np.zeros((2, 2)), "samples": np.ones((2, 2))},
    "robots.accusing": {"probability": 0.1},
    "robots.byzantine": {"members": SOME},
    "robots.circling": {"radius": 1.0, "step": 0.1},
    "robots.dbp": SWARM,
    "robots.known_value": {"observers": SOME, "value": 10.0, "lie": -50.0},
    "robots.localisation": {"anchors": SOME},
    "robots.maximum_matching": {"adjacency": ~np.eye(4, dtype=bool)},
    "robots.motion": {"speed": 0.1},
    "robots.origins": {"suspicious": SOME},
    "robots.scattered": {"key": KEY, "robots": N},
    "robots.target_tracking": {"target": lambda tick: np.zeros(2)},
    "robots.time_synchronisation": {"anchors": SOME},
    "robots.w_msr": {**SWARM, "tolerated": 1},
}
