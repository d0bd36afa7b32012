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

CALLS = {
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
