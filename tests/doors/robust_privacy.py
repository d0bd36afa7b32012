"""Right calls of secure aggregation, of DP-BREM, and of what it is compared with."""

import jax.numpy as jnp

import dflax as dx
from doors.privacy import SAMPLED
from doors.things import AGGREGATOR, KEY, LOSS, N

SECURE = dx.privacy.secure_aggregation(KEY, N, bound=2.0)
RECORDS = {"loss": LOSS, "clients": N, "rate": 0.1, "record_clip": 1.0, "noise": 1.0}
BREM = {**RECORDS, "radius": 1.0, "beta": 0.5, "sampling": 0.5, "examples_at_once": 1}

CALLS = {
    "aggregation.coordinate_clipping": {"rule": AGGREGATOR, "limit": 1.0},
    "aggregation.recentred": {"rule": AGGREGATOR},
    "aggregation.sampled": {"rule": AGGREGATOR, "probability": 0.5},
    "aggregation.scheduled": {"make": lambda t: AGGREGATOR},
    "participation.at_least_one": {
        "join_key": KEY,
        "first_key": KEY,
        "probability": 0.5,
        "among": jnp.ones(N, bool),
    },
    "privacy.fixed_point": {"addends": 4, "bound": 1.0, "scale_bits": 8, "modulus_bits": 16},
    "privacy.message_bytes": {
        "numbers": 4,
        "neighbours": 3,
        "modulus_bits": 16,
        "key_bits": 256,
        "share_bits": 256,
    },
    "privacy.momentum_plans": {
        "federation": SAMPLED,
        "noise": 1.0,
        "rounds": 2,
        "beta": 0.5,
        "record_clip": 1.0,
    },
    "privacy.noisy_mean": {"rule": AGGREGATOR, "deviation": 1.0, "joint": True},
    "privacy.proved_norms": {
        "rule": AGGREGATOR,
        "radius": 1.0,
        "encoding": SECURE.encoding,
        "uncut": [0],
    },
    "privacy.secure_aggregation": {
        "key": KEY,
        "clients": N,
        "bound": 1.0,
        "scale_bits": 8,
        "modulus_bits": 16,
        "largest_weight": 2.0,
        "neighbours": 2,
        "threshold": 2,
        "answering": 0.9,
        "transport": dx.channel.lossy(0.1),
        "literal": True,
    },
    "recipes.distributed_dp": {**RECORDS, "limit": 0.1},
    "recipes.dp_fedsgd": {**RECORDS, "radius": 1.0},
    "recipes.dp_median": RECORDS,
    "recipes.dp_momentum": {**RECORDS, "beta": 0.5},
    "recipes.local_dp_momentum": {**RECORDS, "radius": 1.0, "beta": 0.5},
    "server.client_momentum": {
        "seen": lambda number, expected: dx.local.gradient(LOSS),
        "clients": N,
        "rate": 0.1,
        "beta": 0.5,
        "aggregator": AGGREGATOR,
    },
    "server.dp_brem": {**BREM, "joint": True},
    "server.dp_brem_plus": {**BREM, "secure": SECURE, "uncut": [0]},
    "server.dp_rsa": {
        **RECORDS,
        "penalty": 0.1,
        "decay": 0.1,
        "examples_at_once": 1,
    },
}
