"""Serving whose prefill and decoding have instances of their own."""

from dflax.inference.disaggregated.aggregated import (
    AggregatedState,
    aggregated_serve,
    aggregated_throughput,
)
from dflax.inference.disaggregated.decoding import Decoded, DecodeState
from dflax.inference.disaggregated.forwarding import (
    Forwarding,
    fewest_connections,
    local_queue,
    on_demand,
    stale_reports,
    within_groups,
)
from dflax.inference.disaggregated.organisation import (
    Observed,
    Organisation,
    ratio_adjustment,
    tidal_scaling,
)
from dflax.inference.disaggregated.pd_serve import PDState, pd_serve
from dflax.inference.disaggregated.ratio import (
    Groups,
    Profile,
    best_ratio,
    best_split,
    best_throughput,
    group_throughput,
    mixed_profile,
    organised,
    profile,
)
from dflax.inference.disaggregated.token_decoding import Emitted, token_decoding
from dflax.inference.disaggregated.transfer import (
    Link,
    Transfer,
    block_fixed,
    block_free,
    instant,
    link,
    link_utilisation,
    per_layer,
)
from dflax.inference.disaggregated.work import (
    cached_work,
    decode_seconds,
    prompt_work,
    scenario_seconds,
)

__all__ = [
    "AggregatedState",
    "DecodeState",
    "Decoded",
    "Emitted",
    "Forwarding",
    "Groups",
    "Link",
    "Observed",
    "Organisation",
    "PDState",
    "Profile",
    "Transfer",
    "aggregated_serve",
    "aggregated_throughput",
    "best_ratio",
    "best_split",
    "best_throughput",
    "block_fixed",
    "block_free",
    "cached_work",
    "decode_seconds",
    "fewest_connections",
    "group_throughput",
    "instant",
    "link",
    "link_utilisation",
    "local_queue",
    "mixed_profile",
    "on_demand",
    "organised",
    "pd_serve",
    "per_layer",
    "profile",
    "prompt_work",
    "ratio_adjustment",
    "scenario_seconds",
    "stale_reports",
    "tidal_scaling",
    "token_decoding",
    "within_groups",
]


def __dir__() -> list[str]:
    return __all__
