"""Right calls of local privacy and of heavy hitters."""

import numpy as np

import dflax as dx
from doors.things import KEY

ORACLE = dx.privacy.local_privacy.k_rr(1.0)
ITEMS = np.arange(8, dtype=np.uint32)[:, None]
FOUND = dx.heavy_hitters.most_frequent(ITEMS, 2)
TREE = {"oracle": ORACLE, "bits": 4, "levels": 2, "k": 2}

TOP = {
    "frequency": np.full(2, 0.5),
    "counts": np.arange(2),
    "users": np.float32(4.0),
    "valid": np.ones(2, bool),
}

CALLS = {
    "heavy_hitters.adaptive": {"k": 2},
    "heavy_hitters.as_numbers": {"words": ITEMS},
    "heavy_hitters.as_words": {"numbers": np.arange(8), "bits": 4},
    "heavy_hitters.by_own_share": TOP,
    "heavy_hitters.by_population": TOP,
    "heavy_hitters.direct": {"oracle": ORACLE, "bits": 4, "k": 2},
    "heavy_hitters.equal_groups": {"users": 8, "levels": 2},
    "heavy_hitters.f1": {"found": FOUND, "truth": FOUND},
    "heavy_hitters.fedpem": TREE,
    "heavy_hitters.fixed": {"number": 2},
    "heavy_hitters.frequency_error": {"found": FOUND, "truth": FOUND},
    "heavy_hitters.grouped": {"key": KEY, "items": ITEMS, "parties": [4, 4], "levels": 2},
    "heavy_hitters.growing_groups": {"users": 8, "levels": 2},
    "heavy_hitters.gtf": {"epsilon": 1.0, "bits": 4, "levels": 2, "k": 2},
    "heavy_hitters.most_frequent": {"items": ITEMS, "k": 2},
    "heavy_hitters.ncr": {"found": FOUND, "truth": FOUND},
    "heavy_hitters.prefix_tree": {
        **TREE,
        "sharing": 1,
        "extension": dx.heavy_hitters.fixed(2),
    },
    "heavy_hitters.prior": {},
    "heavy_hitters.tap": {**TREE, "sharing": 1},
    "heavy_hitters.taps": {**TREE, "sharing": 1},
    "heavy_hitters.triehh": {"bits": 4, "levels": 2, "k": 2, "threshold": 5},
    "heavy_hitters.triehh_batch": {"epsilon": 1.0, "users": 1000, "levels": 2, "threshold": 5},
    "heavy_hitters.triehh_threshold": {"delta": 0.01},
    "heavy_hitters.validated": {},
    "privacy.local_privacy.audited_epsilon": {
        "key": KEY,
        "oracle": ORACLE,
        "size": 2,
        "reports": 100,
    },
    "privacy.local_privacy.binomial": {"key": KEY, "count": 3, "probability": 0.5},
    "privacy.local_privacy.domain": {"size": 4},
    "privacy.local_privacy.hadamard_response": {"epsilon": 1.0},
    "privacy.local_privacy.k_rr": {"epsilon": 1.0},
    "privacy.local_privacy.literally": {"oracle": ORACLE},
    "privacy.local_privacy.olh": {"epsilon": 1.0},
    "privacy.local_privacy.oue": {"epsilon": 1.0},
    "privacy.local_privacy.prefers_k_rr": {"epsilon": 1.0, "size": 4},
    "privacy.local_privacy.rappor": {"permanent": 2.0, "first": 1.0},
    "privacy.local_privacy.rappor_budgets": {"f": 0.5, "p": 0.3, "q": 0.6},
    "privacy.local_privacy.sue": {"epsilon": 1.0},
}
