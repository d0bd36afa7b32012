"""Right calls of the inference room's building blocks."""

import jax.numpy as jnp
import numpy as np

import dflax as dx

INF = dx.inference
TRACE = INF.trace([0.0, 0.5, 0.75, 2.0], [5, 6, 7, 8], [1, 2, 3, 4])
CHIP = INF.accelerator(1e12, 1e11, 1e10)
NET = INF.network(1e6, 1e3)
SERVED = INF.Served(np.array([1.0, 1.0, 1.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0]))
CACHE = INF.prefix_cache(2, 3)
WORK = INF.fixed_work(lambda row: row)
PLAIN = dx.Algorithm(lambda key, params: (), lambda state, round: (state, {}))
CHAT = INF.scenario(INF.constant(4), INF.constant(2))

CALLS = {
    "inference.accelerator": {
        **{"flops": 1e12, "bandwidth": 1e11, "memory": 1e10, "price": 1.0},
        **{"idle_watts": 1.0, "peak_watts": 2.0},
        **{"compute_efficiency": 0.5, "memory_efficiency": 0.5},
    },
    "inference.affine_costs": {
        **{"prefill": [0.1, 0.2, 0.3], "decode": [0.1, 0.2, 0.3]},
        **{"large_decode": [0.1, 0.2, 0.3], "large": 2},
    },
    "inference.at_random": {},
    "inference.at_rate": {"algorithm": PLAIN, "rate": 2.0},
    "inference.blocks": {"requests": TRACE, "size": 2},
    "inference.cache_tokens": {"network": NET, "accelerator": CHIP},
    "inference.constant": {"tokens": 2},
    "inference.evenly": {"rate": 2.0},
    "inference.first_free": {},
    "inference.fixed_work": {"durations": lambda row: row},
    "inference.gamma": {"rate": 2.0, "cv": 1.5},
    "inference.hits": {"cache": CACHE, "prefix": 1, "shared": 4, "block": 2},
    "inference.kept": {"cache": CACHE, "location": 0, "prefix": 1, "shared": 4, "capacity": 9},
    "inference.latency": {"requests": TRACE, "served": SERVED},
    "inference.least_work": {},
    "inference.levels": {"ttft": 1.0, "tpot": 1.0, "total": 1.0},
    "inference.log_normal": {"mean": 6.0, "deviation": 0.5, "low": 1, "high": 10},
    "inference.network": {
        **{"parameters": 1e6, "cache_bytes": 1e3, "active": 1e5},
        **{"layers": 2.0, "width": 8.0, "parameter_bytes": 2.0},
    },
    "inference.opt_13b_costs": {"tensor_parallel": 4},
    "inference.poisson": {"rate": 2.0},
    "inference.power": {"accelerator": CHIP, "utilisation": 0.5},
    "inference.prefix_cache": {"locations": 2, "prefixes": 3},
    "inference.quantile": {"values": jnp.arange(4.0), "percent": 50.0},
    "inference.read_trace": {"path": "there.csv"},
    "inference.roofline_costs": {"network": NET, "accelerator": CHIP},
    "inference.round_robin": {},
    "inference.scenario": {
        **{"prompt": INF.constant(4), "output": INF.constant(2), "prefixes": 3},
        **{"exponent": 1.0, "reused": 0.5, "probability": 0.5},
    },
    "inference.service": {
        **{"requests": TRACE, "served": SERVED, "promised": INF.levels(ttft=1.0)},
        **{"counted": np.ones(4, bool)},
    },
    "inference.sorted_by": {"times": np.arange(3.0), "serve": lambda times, rows: ((), rows)},
    "inference.spent": {"accelerator": CHIP, "busy": 1.0, "span": 2.0},
    "inference.stateless": {"choose": lambda moment: 0},
    "inference.station": {
        **{"policy": INF.first_free(), "work": WORK, "instances": 2, "slots": 2},
        **{"stays": lambda wait, duration: wait < 1.0, "on": 1},
    },
    "inference.ties": {"bits": jnp.uint32(3), "instances": 2},
    "inference.tidal": {"rate": 2.0, "amplitude": 0.5, "period": 10.0, "phase": 0.0},
    "inference.trace": {
        **{"arrived": [0.0, 1.0], "prompt": [5, 6], "output": [1, 2]},
        **{"scenario": [0, 1], "prefix": [0, 0], "shared": [2, 2]},
    },
    "inference.traffic": {
        **{"arrivals": INF.poisson(1.0), "scenarios": [CHAT], "size": 2, "weights": [1.0]},
    },
    "inference.write_trace": {"path": "there.csv", "requests": TRACE},
    "inference.zipf": {"exponent": 1.0, "low": 1, "high": 3},
}
