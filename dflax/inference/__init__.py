"""Inference as init/step: serving simulators, selection, efficiency, swarms."""

from dflax.inference import (
    batching,
    decoding,
    efficiency,
    selection,
    supernode,
)
from dflax.inference.arrivals import (
    Arrivals,
    evenly,
    gamma,
    poisson,
    tidal,
)
from dflax.inference.calibration import (
    Measured,
    fitted_coefficients,
    fitted_costs,
)
from dflax.inference.costs import (
    Costs,
    affine_costs,
    opt_13b_costs,
    roofline_costs,
)
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
from dflax.inference.lengths import (
    Lengths,
    constant,
    log_normal,
    zipf,
)
from dflax.inference.prefix_cache import (
    PrefixCache,
    hits,
    kept,
    prefix_cache,
)
from dflax.inference.requests import (
    Requests,
    at_rate,
    blocks,
    trace,
)
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
from dflax.inference.swarm.bradley_terry import (
    Strengths,
    bradley_terry,
    bradley_terry_likelihood,
)
from dflax.inference.swarm.economics import (
    CapabilityTest,
    RoundRewards,
    capability_test,
    entry_cost,
    pass_probability,
    round_rewards,
    rounds_to_reputation,
    sybil_profit,
)
from dflax.inference.swarm.fortytwo import (
    SwarmNodes,
    fortytwo,
)
from dflax.inference.swarm.ledger import (
    DualTrack,
    SwarmLedger,
    dual_track,
)
from dflax.inference.swarm.nodes import (
    Swarm,
    classifier_swarm,
    latent_swarm,
)
from dflax.inference.swarm.pairs import (
    all_pairs,
    sampled_pairs,
    weighted_wins,
)
from dflax.inference.swarm.questions import (
    Asked,
    LatentQuestion,
    Question,
    Questions,
    example_questions,
    latent_questions,
)
from dflax.inference.swarm.rules import (
    Ballot,
    Ranked,
    by_elo,
    by_majority,
    by_strength,
    by_win_rate,
    clustered,
)
from dflax.inference.traces import (
    read_trace,
    write_trace,
)
from dflax.inference.traffic import (
    Scenario,
    Traffic,
    scenario,
    traffic,
)

__all__ = [
    "Accelerator",
    "Arrivals",
    "Asked",
    "Ballot",
    "CapabilityTest",
    "Costs",
    "DualTrack",
    "Latencies",
    "LatentQuestion",
    "Lengths",
    "Levels",
    "Measured",
    "Moment",
    "Network",
    "Placement",
    "Policy",
    "PrefixCache",
    "Question",
    "Questions",
    "Ranked",
    "Requests",
    "RoundRewards",
    "Scenario",
    "Served",
    "Spent",
    "Station",
    "StationState",
    "Strengths",
    "Swarm",
    "SwarmLedger",
    "SwarmNodes",
    "Traffic",
    "Work",
    "accelerator",
    "affine_costs",
    "all_pairs",
    "at_random",
    "at_rate",
    "batching",
    "blocks",
    "bradley_terry",
    "bradley_terry_likelihood",
    "by_elo",
    "by_majority",
    "by_strength",
    "by_win_rate",
    "cache_tokens",
    "capability_test",
    "classifier_swarm",
    "clustered",
    "constant",
    "decoding",
    "dual_track",
    "efficiency",
    "entry_cost",
    "evenly",
    "example_questions",
    "first_free",
    "fitted_coefficients",
    "fitted_costs",
    "fixed_work",
    "fortytwo",
    "gamma",
    "hits",
    "kept",
    "latency",
    "latent_questions",
    "latent_swarm",
    "least_work",
    "levels",
    "log_normal",
    "network",
    "opt_13b_costs",
    "pass_probability",
    "poisson",
    "power",
    "prefix_cache",
    "quantile",
    "read_trace",
    "roofline_costs",
    "round_rewards",
    "round_robin",
    "rounds_to_reputation",
    "sampled_pairs",
    "scenario",
    "selection",
    "service",
    "sorted_by",
    "spent",
    "stateless",
    "station",
    "supernode",
    "sybil_profit",
    "tidal",
    "ties",
    "trace",
    "traffic",
    "weighted_wins",
    "write_trace",
    "zipf",
]


def __dir__() -> list[str]:
    return __all__
