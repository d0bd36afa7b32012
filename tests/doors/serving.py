"""Right calls of decoding, batching and calibration."""

import jax.numpy as jnp
import numpy as np

import dflax as dx

INF = dx.inference
MODEL = dx.models.TransformerLM(5, length=8, width=4, depth=1, heads=1)
CACHE = INF.decoding.empty_cache(MODEL, 2, 8)
HELD = CACHE._replace(lengths=jnp.array([3, 0], jnp.int32))
DECODER = INF.decoding.decoder(MODEL)
COSTS = INF.affine_costs((0.1, 0.1, 0.1), (0.1, 0.1, 0.1))
REPLICA = INF.batching.replica(COSTS, slots=2)
LENGTHS = np.array([1.0, 2.0, 4.0])
MEASURED = INF.Measured(
    LENGTHS, LENGTHS**2, LENGTHS, LENGTHS, np.array([1.0, 5.0, 2.0]), np.ones(3)
)

CALLS = {
    "inference.batching.chunked_prefill": {"tokens": 8},
    "inference.batching.continuous_batching": {
        "served_by": REPLICA,
        "promised": INF.levels(ttft=1.0),
    },
    "inference.batching.decode_only": {"requests": 2},
    "inference.batching.prefill_first": {"tokens": 8, "requests": 2},
    "inference.batching.replica": {
        **{"costs": COSTS, "slots": 2, "batching": INF.batching.decode_only()},
        **{"memory": 100.0, "block": 4, "reuse": 0.5, "drain": False},
    },
    "inference.decoding.compiled": {"served": DECODER},
    "inference.decoding.decoder": {
        "model": MODEL,
        "choose": INF.decoding.greedy(),
        "chunk": 2,
    },
    "inference.decoding.empty_cache": {"model": MODEL, "slots": 2, "length": 8},
    "inference.decoding.greedy": {},
    "inference.decoding.release": {"cache": CACHE, "slots": np.array([0])},
    "inference.decoding.sampled": {"temperature": 0.5},
    "inference.decoding.share_prefix": {
        **{"cache": HELD, "source": 0, "slots": np.array([1]), "tokens": 2},
    },
    "inference.fitted_coefficients": {"measured": MEASURED},
    "inference.fitted_costs": {"measured": MEASURED},
}
