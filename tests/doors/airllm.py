"""Right calls of fine-tuning over the air."""

import numpy as np
import optax

import dflax as dx
from doors.things import KEY, LOSS, WEIGHTS

RL = dx.rl
ONES = np.ones(2, np.float32)
TASK = RL.separable(ONES, ONES, np.array([2, 2]), 3)
LINK = RL.radio_link()
TUNING = RL.adapter_tuning(
    LOSS, optax.sgd(0.1), WEIGHTS, 1, where=lambda path: path == "Dense_0/kernel"
)
RULED = RL.fixed_ranks(TUNING, LINK, RL.uniform_ranks(1), low=0)
STATE = RULED.init(KEY, WEIGHTS)
RING = RL.pushed(RL.ring(4, np.zeros(2)), np.ones((3, 2)))

CALLS = {
    "models.orthogonality": {"adapter": dx.models.svd_lora(KEY, WEIGHTS, 1), "ranks": 1},
    "models.svd_lora": {"key": KEY, "params": WEIGHTS, "rank": 1},
    "rl.CoarsePolicy": {"actions": 2},
    "rl.RankDenoiser": {},
    "rl.airllm": {"task": TASK, "link": LINK},
    "rl.capacity": {"ratio": 10.0, "bandwidth": 1e6},
    "rl.ddim_times": {"steps": 5},
    "rl.decode_ranks": {"x": ONES, "low": 1, "high": 8},
    "rl.diffusion_decoder": {},
    "rl.drawn": {"ring": RING, "key": KEY, "count": 2},
    "rl.encode_ranks": {"ranks": np.array([1, 2]), "low": 1, "high": 8},
    "rl.adapter_tuning": {
        **{"loss": LOSS, "optimizer": optax.sgd(0.1), "params": WEIGHTS, "rank": 1},
        "where": lambda path: path == "Dense_0/kernel",
    },
    "rl.fixed_ranks": {"task": TASK, "link": LINK, "rule": RL.uniform_ranks(1)},
    "rl.identity_decoder": {},
    "rl.important_ranks": {"mean_rank": 2.0},
    "rl.largest_uniform": {},
    "rl.linear_decoder": {},
    "rl.in_order": {"ring": RING},
    "rl.pushed": {"ring": RING, "rows": np.ones((3, 2))},
    "rl.radio_link": {"ratios": (0.0, 5.0), "bandwidths": (1e6,)},
    "rl.random_ranks": {},
    "rl.reward_weights": {"rewards": ONES, "strength": 0.1},
    "rl.ring": {"capacity": 4, "row": np.zeros(2)},
    "rl.separable": {"weights": ONES, "decays": ONES, "sizes": np.array([2, 2]), "rank": 3},
    "rl.token_statistics": {"tokens": np.array([0, 1, 1]), "vocabulary": 3},
    "rl.transmitted": {"ranks": np.array([1, 2]), "sizes": np.array([2, 2])},
    "rl.tuned_models": {"task": TUNING, "state": STATE},
    "rl.uniform_ranks": {"rank": 2},
}
