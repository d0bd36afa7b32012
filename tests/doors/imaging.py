"""Right calls of imaging, and of the proxes that it is made of."""

import jax.numpy as jnp
import numpy as np

from dflax import imaging
from doors.things import KEY

GEOMETRY = imaging.crossed_diagonals((2, 2, 3), transmitters=2, receivers=2, frequencies=2)
OPERATOR = imaging.dense(GEOMETRY)
Y = np.ones((1, 2, 2, 2), np.complex64)
PRIOR = imaging.sparse()
VOLUME = np.ones((1, 2, 2, 3), np.float32)


def keep(weights, m, alpha):
    return m


CALLS = {
    "imaging.back_projection": {"geometry": GEOMETRY, "measurements": Y},
    "imaging.crossed_diagonals": {"voxels": (2, 2, 3)},
    "imaging.dense": {"geometry": GEOMETRY},
    "imaging.first_scenes": {"operator": OPERATOR, "measurements": Y},
    "imaging.geometry": {
        "transmitters": np.zeros((1, 3)),
        "receivers": np.zeros((1, 3)),
        "frequencies": np.array([1e9]),
        "axes": (np.zeros(1), np.zeros(1), np.ones(1)),
    },
    "imaging.kirchhoff": {"geometry": GEOMETRY, "measurements": Y},
    "imaging.learned": {},
    "imaging.low_memory": {"geometry": GEOMETRY},
    "imaging.magnitudes": {"state": imaging.pnp_admm(OPERATOR, PRIOR).init(KEY, Y, 1.0)},
    "imaging.noise_removed": {
        "weights": imaging.learned().weights,
        "noisy": jnp.asarray(VOLUME),
        "deviation": jnp.full(1, 0.1),
    },
    "imaging.noisy": {"key": KEY, "clean": Y, "decibels": 30.0},
    "imaging.normalised": {"x": Y},
    "imaging.of_magnitude": {"prox": keep},
    "imaging.pnp_admm": {"operator": OPERATOR, "prior": PRIOR},
    "imaging.pnp_consensus": {"operator": OPERATOR, "prior": PRIOR, "clients": 2},
    "imaging.psnr": {"estimate": VOLUME, "truth": VOLUME},
    "imaging.received": {"operator": OPERATOR, "measurements": Y, "radius": 1.0},
    "imaging.receiving": {"kept": imaging.received(OPERATOR, Y, 1.0)},
    "imaging.shared_scenes": {
        "state": imaging.pnp_consensus(OPERATOR, PRIOR, 2).init(
            KEY, imaging.first_scenes(OPERATOR, Y), imaging.received(OPERATOR, Y, 1.0)
        )
    },
    "imaging.small_variation": {},
    "imaging.sparse": {},
    "imaging.zero_phase": {"prox": keep},
    "local.group_threshold": {"x": np.ones(3), "weight": 0.5},
    "local.on_magnitude": {"prox": lambda m: m, "z": np.ones(3)},
    "local.onto_ball": {"x": np.ones(3), "center": np.ones(3), "radius": 1.0},
    "local.onto_box": {"x": np.ones(3), "low": 0.0, "high": 1.0},
    "local.onto_simplex": {"x": np.ones(3)},
    "local.soft_threshold": {"x": np.ones(3), "weight": 0.5},
}
