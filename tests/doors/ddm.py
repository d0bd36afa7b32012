"""Right calls of decentralized diffusion."""

import numpy as np
import optax

import dflax as dx
from doors.things import DATA, KEY, LOSS, OPTIMIZER, STACKED, N

EXPERTS, G = dx.experts, dx.generative
PATH = G.rectified()
CLUSTERS = np.arange(len(DATA)) % N
SEEN = G.Noised(np.ones((2, N), np.float32), np.full(2, 0.5, np.float32))


def network(params, noised):
    """A prediction like x."""
    return noised.x


def router(noised, key):
    """Even logits."""
    return noised.x[:, :N]


CALLS = {
    "experts.apart": {"data": DATA, "labels": CLUSTERS, "batch_size": 3 * N},
    "experts.clusters": {"features": np.arange(12.0).reshape(6, 2), "experts": 3},
    "experts.ddm": {"loss": LOSS, "optimizer": OPTIMIZER, "experts": 3},
    "experts.distillation": {
        **{"student": network, "teacher": network, "path": PATH},
        **{"optimizer": optax.sgd(0.1), "experts": 3},
    },
    "experts.ensemble": {
        **{"model": network, "params": STACKED, "router": router, "rule": EXPERTS.top(1)},
    },
    "experts.evaluations": {"samples": 3, "experts": 3, "active": 3, "block": 3},
    "experts.expert_load": {
        **{"router": router, "rule": EXPERTS.top(1), "experts": N, "noised": SEEN, "key": KEY},
    },
    "experts.full": {},
    "experts.nucleus": {"p": 0.5},
    "experts.oracle": {"labels": np.arange(3)},
    "experts.routing": {"model": network, "path": PATH},
    "experts.sampled": {},
    "experts.threshold": {"tau": 0.5},
    "experts.top": {},
}
