"""Right calls of post-decision agents and of their problems."""

import numpy as np
import optax

import dflax as dx

INSTANCE = dx.rl.random_instance(0, 2, 2)
LAKE = dx.rl.random_lake(0, 3)
NETWORKS = dx.rl.decision_networks(3, choices=2, features=(4,))
SGD = optax.sgd(0.1)
PLANT = dx.rl.time_limit(dx.rl.lot_sizing(INSTANCE), 3)

CALLS = {
    "rl.binomial_demand": {"items": 2},
    "rl.decision_networks": {"actions": 3},
    "rl.frozen_lake": {"lake": LAKE},
    "rl.larger_part": {},
    "rl.lot_sizing": {"instance": INSTANCE},
    "rl.noiseless": {},
    "rl.pdppo": {
        "environment": PLANT,
        "networks": NETWORKS,
        "optimizer": dx.rl.separate_optimizers(SGD, SGD),
    },
    "rl.perfect_information": {
        "instance": INSTANCE,
        "inventory": np.ones(2),
        "setup": np.ones(2, int),
        "demand": np.ones((2, 2)),
        "seconds": 1.0,
    },
    "rl.post_critic": {},
    "rl.random_instance": {"seed": 0, "items": 2, "machines": 2},
    "rl.random_lake": {"seed": 0, "size": 3},
    "rl.separate_optimizers": {"actor": SGD, "critics": SGD},
    "rl.state_critic": {},
}
