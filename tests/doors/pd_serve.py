"""Right calls of disaggregated serving."""

import jax.numpy as jnp
import numpy as np

import dflax as dx

INF = dx.inference
PROFILE = INF.profile(0.8, 8.0)
LINK = INF.link()
WORK = INF.fixed_work(lambda row: 0.1)
COSTS = INF.opt_13b_costs(4)

CALLS = {
    "inference.aggregated_serve": {
        **{"instances": 2, "prefill": lambda row: 0.1, "answer": lambda row: 1.0},
        **{"slots": 2, "promised": INF.levels(ttft=1.0)},
    },
    "inference.aggregated_throughput": {"prefill": 0.8, "decode": 8.0, "slots": 32},
    "inference.best_ratio": {"of": PROFILE},
    "inference.best_split": {"of": PROFILE, "instances": 4},
    "inference.best_throughput": {"of": PROFILE},
    "inference.block_fixed": {"of": LINK, "block": 16},
    "inference.block_free": {"of": LINK, "messages": 2, "scatter": 1e12},
    "inference.cached_work": {
        **{"costs": COSTS, "instances": 2, "prefixes": 3, "capacity": 100, "block": 2},
    },
    "inference.decode_seconds": {"costs": COSTS, "batch": 4},
    "inference.fewest_connections": {"answer": lambda row: 1.0, "kept": 4},
    "inference.group_throughput": {"of": PROFILE, "prefill": 2, "decode": 2},
    "inference.instant": {},
    "inference.link": {
        **{"layers": 40, "token_bytes": 20480.0, "bandwidth": 25e9, "control": 1e-5},
    },
    "inference.link_utilisation": {
        **{"of": LINK, "transfer": INF.block_fixed(LINK), "prompt": 100},
    },
    "inference.local_queue": {"policy": INF.round_robin()},
    "inference.mixed_profile": {"profiles": [PROFILE, PROFILE], "shares": [0.5, 0.5]},
    "inference.on_demand": {"retry": 0.01, "waiting": 4},
    "inference.organised": {"profiles": [PROFILE, PROFILE], "rates": [0.5, 0.5], "instances": 8},
    "inference.pd_serve": {
        **{"prefill": 2, "decode": 2, "work": WORK, "answer": lambda row: 1.0},
        **{"prefill_slots": 2, "decode_slots": 2, "forwarding": INF.on_demand()},
        **{"transfer": INF.block_free(LINK), "contended": True, "conflict": 0.05},
        **{"hold_prefill": False, "promised": INF.levels(ttft=1.0), "context": 100},
        **{"organisation": INF.ratio_adjustment(), "most": 4},
    },
    "inference.per_layer": {"of": LINK},
    "inference.profile": {
        **{"prefill": 0.8, "decode": 8.0, "prefill_slots": 4, "decode_slots": 32},
    },
    "inference.prompt_work": {"costs": COSTS},
    "inference.ratio_adjustment": {
        **{"latency": 0.1, "share": 0.1, "decay": 0.9, "cooldown": 1.0, "warm_up": 1.0},
        **{"reference": PROFILE, "spare": 1, "underway": 8},
    },
    "inference.scenario_seconds": {"seconds": [0.5, 0.5]},
    "inference.stale_reports": {
        **{"interval": 1.0, "unit": "tokens", "tie": "lowest", "dispatches": True},
        **{"tokens": lambda row: 1.0, "kept": 4},
    },
    "inference.tidal_scaling": {
        **{"profile": PROFILE, "most": 8, "start": 4, "utilisation": 0.8, "memory": 0.5},
        **{"warm_up": 1.0, "moves": 2},
    },
    "inference.token_decoding": {
        **{"ready": jnp.arange(3.0), "prompt": np.array([4, 5, 6]), "output": np.array([1, 2, 3])},
        **{"costs": COSTS, "instances": 2, "slots": 2, "tick": 0.01, "ticks": 3},
    },
    "inference.within_groups": {"policy": INF.round_robin(), "sizes": [1, 1]},
}
