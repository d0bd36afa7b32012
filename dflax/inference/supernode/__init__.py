"""A supernode that serves a large mixture of experts: CloudMatrix384, arXiv 2506.12708."""

from dflax.inference.supernode.balance import balanced, imbalance, routed_loads
from dflax.inference.supernode.decode import (
    Points,
    Speculation,
    cloudmatrix_costs,
    fitted_decode,
    published_points,
    speculation,
    speculation_gain,
    time_per_token,
)
from dflax.inference.supernode.expert_parallel import (
    Exchanged,
    expert_parallel,
    identity_experts,
    swiglu_experts,
)
from dflax.inference.supernode.experts import (
    Exchange,
    Exchanges,
    buffer_bytes,
    cloudmatrix_exchanges,
    deepep_exchanges,
    dispatch_bytes,
    exchange,
    exchange_time,
    spare_slots,
)
from dflax.inference.supernode.fluid import fluid_decode
from dflax.inference.supernode.instances import Deployment, deployment
from dflax.inference.supernode.int8 import (
    Int8Linear,
    Quantised,
    int8_apply,
    int8_linear,
    quantised_columns,
    quantised_product,
    quantised_rows,
    searched,
    smoothing_factors,
)
from dflax.inference.supernode.int8_experts import Int8Experts, int8_experts, int8_mixture
from dflax.inference.supernode.layers import (
    Die,
    Sizes,
    Stage,
    attention_stage,
    experts_stage,
    pipelined,
    stage,
    stage_time,
)
from dflax.inference.supernode.planes import (
    Plane,
    Planes,
    cloudmatrix_planes,
    fair_rates,
    message,
    plane,
)
from dflax.inference.supernode.prefill import data_parallel_step, packed_step, with_cache
from dflax.inference.supernode.rank_map import prefill_ranks
from dflax.inference.supernode.serving import (
    ServingState,
    kv_centric,
    local_only,
    peer,
    where_saved,
)

__all__ = [
    "Deployment",
    "Die",
    "Exchange",
    "Exchanged",
    "Exchanges",
    "Int8Experts",
    "Int8Linear",
    "Plane",
    "Planes",
    "Points",
    "Quantised",
    "ServingState",
    "Sizes",
    "Speculation",
    "Stage",
    "attention_stage",
    "balanced",
    "buffer_bytes",
    "cloudmatrix_costs",
    "cloudmatrix_exchanges",
    "cloudmatrix_planes",
    "data_parallel_step",
    "deepep_exchanges",
    "deployment",
    "dispatch_bytes",
    "exchange",
    "exchange_time",
    "expert_parallel",
    "experts_stage",
    "fair_rates",
    "fitted_decode",
    "fluid_decode",
    "identity_experts",
    "imbalance",
    "int8_apply",
    "int8_experts",
    "int8_linear",
    "int8_mixture",
    "kv_centric",
    "local_only",
    "message",
    "packed_step",
    "peer",
    "pipelined",
    "plane",
    "prefill_ranks",
    "published_points",
    "quantised_columns",
    "quantised_product",
    "quantised_rows",
    "routed_loads",
    "searched",
    "smoothing_factors",
    "spare_slots",
    "speculation",
    "speculation_gain",
    "stage",
    "stage_time",
    "swiglu_experts",
    "time_per_token",
    "where_saved",
    "with_cache",
]


def __dir__() -> list[str]:
    return __all__
