"""Flow policies: PolicyFlow, FPO and DPPO."""

from dflax.rl.flow.dppo import Chain, chain_log_probs, clip_ranges, dppo
from dflax.rl.flow.fpo import Matched, fpo, matching_losses
from dflax.rl.flow.interpolated import RatioError, brownian_residual, log_shift_ratio, ratio_error
from dflax.rl.flow.policy import FlowActorCritic, FlowPolicy, flow_policy, flowing
from dflax.rl.flow.policyflow import Carried, interpolation_error, policyflow

__all__ = [
    "Carried",
    "Chain",
    "FlowActorCritic",
    "FlowPolicy",
    "Matched",
    "RatioError",
    "brownian_residual",
    "chain_log_probs",
    "clip_ranges",
    "dppo",
    "flow_policy",
    "flowing",
    "fpo",
    "interpolation_error",
    "log_shift_ratio",
    "matching_losses",
    "policyflow",
    "ratio_error",
]


def __dir__() -> list[str]:
    return __all__
