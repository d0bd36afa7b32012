"""Right calls of reinforcement learning."""

import numpy as np

REWARDS = np.ones((3, 2), np.float32)

CALLS = {
    "rl.clipped": {"log_ratio": REWARDS, "advantages": REWARDS, "clip": 0.2},
    "rl.discounted_returns": {"rewards": REWARDS, "ends": REWARDS, "discount": 0.9},
    "rl.gae": {
        **{"rewards": REWARDS, "values": REWARDS, "ends": REWARDS},
        **{"beyond": 0.0, "discount": 0.9, "decay": 0.9},
    },
    "rl.leave_one_out": {"rewards": REWARDS},
    "rl.standardised": {"advantages": REWARDS},
}
