"""Inference as init/step: serving simulators, selection, efficiency, swarms."""

from dflax.inference import batching, decoding, selection
from dflax.inference.arrivals import Arrivals, evenly, gamma, poisson, tidal
from dflax.inference.calibration import Measured, fitted_coefficients, fitted_costs
from dflax.inference.costs import Costs, affine_costs, opt_13b_costs, roofline_costs
from dflax.inference.hardware import (
    Accelerator,
    Network,
    Spent,
    accelerator,
    cache_tokens,
    network,
    power,
    spent,
)
from dflax.inference.lengths import Lengths, constant, log_normal, zipf
from dflax.inference.prefix_cache import PrefixCache, hits, kept, prefix_cache
from dflax.inference.requests import Requests, at_rate, blocks, trace
from dflax.inference.service import (
    Latencies,
    Levels,
    Served,
    latency,
    levels,
    quantile,
    service,
)
from dflax.inference.stations import (
    Moment,
    Placement,
    Policy,
    Station,
    StationState,
    Work,
    at_random,
    first_free,
    fixed_work,
    least_work,
    round_robin,
    sorted_by,
    stateless,
    station,
    ties,
)
from dflax.inference.traces import read_trace, write_trace
from dflax.inference.traffic import Scenario, Traffic, scenario, traffic

__all__ = [
    "Accelerator",
    "Arrivals",
    "Costs",
    "Latencies",
    "Lengths",
    "Levels",
    "Measured",
    "Moment",
    "Network",
    "Placement",
    "Policy",
    "PrefixCache",
    "Requests",
    "Scenario",
    "Served",
    "Spent",
    "Station",
    "StationState",
    "Traffic",
    "Work",
    "accelerator",
    "affine_costs",
    "at_random",
    "at_rate",
    "batching",
    "blocks",
    "cache_tokens",
    "constant",
    "decoding",
    "evenly",
    "first_free",
    "fitted_coefficients",
    "fitted_costs",
    "fixed_work",
    "gamma",
    "hits",
    "kept",
    "latency",
    "least_work",
    "levels",
    "log_normal",
    "network",
    "opt_13b_costs",
    "poisson",
    "power",
    "prefix_cache",
    "quantile",
    "read_trace",
    "roofline_costs",
    "round_robin",
    "scenario",
    "selection",
    "service",
    "sorted_by",
    "spent",
    "stateless",
    "station",
    "tidal",
    "ties",
    "trace",
    "traffic",
    "write_trace",
    "zipf",
]


def __dir__() -> list[str]:
    return __all__
