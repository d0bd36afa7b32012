"""Right calls of the supernode that serves a large mixture of experts."""

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax.models.moe.routing import Routing

INF = dx.inference
SN = INF.supernode
PLANE = SN.plane(1e-6, 1e9)
STAGE = SN.stage(1.0, 1.0, 1.0)
PLACE = SN.deployment(2, prefill=1, decode_npus=1, batch=1)
W, X = np.ones((3, 2), np.float32), np.ones((4, 3), np.float32)
ROWS, COLUMNS = SN.quantised_rows(X), SN.quantised_columns(W)
MATRICES = (np.ones((2, 3, 2)), np.ones((2, 3, 2)), np.ones((2, 2, 3)))
ROUTING = Routing(
    jnp.zeros((4, 1), jnp.int32), jnp.ones((4, 1)), jnp.broadcast_to(jnp.array([1.0, 0.0]), (4, 2))
)
ONE = dx.client_mesh(jax.devices()[:1])
LEVELS = INF.levels(ttft=1.0)
COSTS = SN.cloudmatrix_costs()

CALLS = {
    f"inference.supernode.{name}": call
    for name, call in {
        "attention_stage": {"sequences": 2.0, "context": 8.0, "sizes": SN.Sizes(), "die": SN.Die()},
        "balanced": {"loads": np.ones(3), "spares": 2},
        "buffer_bytes": {"ranks": 2, "tokens": 2},
        "cloudmatrix_costs": {},
        "cloudmatrix_exchanges": {},
        "cloudmatrix_planes": {},
        "data_parallel_step": {"tokens": np.ones(3), "seconds": 0.5, "ranks": 2},
        "deepep_exchanges": {},
        "deployment": {
            **{"prefixes": 2, "costs": COSTS, "guesses": SN.speculation(), "link": PLANE},
        },
        "dispatch_bytes": {"width": 8},
        "exchange": {"few": 0.5, "many": 0.5, "bytes": 0.5},
        "exchange_time": {"exchange": SN.exchange(1.0, 2.0, 8.0), "ranks": 8.0, "tokens": 2.0},
        "expert_parallel": {
            **{"tokens": X, "params": MATRICES, "routing": ROUTING, "mesh": ONE, "places": 4},
            "combined": None,
        },
        "experts_stage": {
            **{"tokens": 2.0, "exchanges": SN.cloudmatrix_exchanges()},
            **{"sizes": SN.Sizes(), "die": SN.Die()},
        },
        "fair_rates": {"plane": PLANE, "source": [0, 1], "destination": [1, 0], "endpoints": 2},
        "fitted_decode": {
            **{"batch": [1.0, 2.0, 3.0], "context": [1.0, 1.0, 2.0]},
            "iteration": [1.0, 2.0, 3.0],
        },
        "fluid_decode": {
            **{"ready": [0.0, 1.0], "prompt": [2, 2], "output": [2, 2], "costs": COSTS},
            **{"speculation": SN.speculation(), "npus": 1, "slots": 1, "ticks": 2, "tick": 0.5},
        },
        "identity_experts": {"rows": np.ones((2, 2, 3)), "params": ()},
        "imbalance": {"loads": np.ones(3), "copies": np.ones(3, int)},
        "int8_apply": {"layer": SN.int8_linear(W, X), "x": X},
        "int8_experts": {"matrices": MATRICES, "inputs": X, "smooth": 0.5},
        "int8_linear": {"weights": W, "inputs": X, "bias": np.ones(2), "smooth": 0.5},
        "int8_mixture": {
            "experts": SN.int8_experts(MATRICES, X),
            **{"tokens": X, "routing": ROUTING},
        },
        "kv_centric": {"deployment": PLACE, "promised": LEVELS},
        "local_only": {"deployment": PLACE, "promised": LEVELS},
        "message": {"plane": PLANE, "size": 8.0},
        "packed_step": {"tokens": np.ones(3), "seconds": 0.5, "ranks": 2, "exchanges": 0.5},
        "peer": {"deployment": PLACE, "promised": LEVELS},
        "pipelined": {"attention": STAGE, "experts": STAGE},
        "plane": {"latency": 0.5, "bandwidth": 0.5},
        "prefill_ranks": {"prefill_tensor": 2, "decode_tensor": 1, "decode_data": 4},
        "published_points": {},
        "quantised_columns": {"weights": W},
        "quantised_product": {"x": ROWS, "weights": COLUMNS},
        "quantised_rows": {"x": X},
        "routed_loads": {"chosen": [0, 1], "experts": 3},
        "searched": {"weights": W, "inputs": X},
        "smoothing_factors": {"inputs": X, "weights": W, "smooth": 0.5},
        "spare_slots": {"ranks": 320, "slots": 3, "shared": 3},
        "speculation": {},
        "speculation_gain": {"speculation": SN.speculation()},
        "stage": {"compute": 0.5, "memory": 0.5, "fixed": 0.5},
        "stage_time": {"stage": STAGE, "share": 0.5},
        "swiglu_experts": {"rows": np.ones((2, 2, 3)), "matrices": MATRICES},
        "time_per_token": {
            **{"costs": COSTS, "batch": 2.0, "context": 8.0, "speculation": SN.speculation()},
        },
        "where_saved": {},
        "with_cache": {"full": 0.5, "reused": 0.5},
    }.items()
}
