"""The client axis: map over clients, gather and scatter cohorts, reduce over them."""

from dflax.clients.devices import (
    CLIENTS,
    MODEL,
    DealtWithClients,
    client_devices,
    everywhere,
    is_planned,
    model_devices,
    platform,
    shared_axis,
    with_their_clients,
)
from dflax.clients.mapping import if_there, map_clients, map_cohort, map_present, sum_cohort
from dflax.clients.reductions import mean_metrics, sum_clients, weighted_mean, weighted_sum
from dflax.clients.rows import against, gather, replicate, require_structure, scatter, select

__all__ = [
    "CLIENTS",
    "MODEL",
    "DealtWithClients",
    "against",
    "client_devices",
    "everywhere",
    "gather",
    "if_there",
    "is_planned",
    "map_clients",
    "map_cohort",
    "map_present",
    "mean_metrics",
    "model_devices",
    "platform",
    "replicate",
    "require_structure",
    "scatter",
    "select",
    "shared_axis",
    "sum_clients",
    "sum_cohort",
    "weighted_mean",
    "weighted_sum",
    "with_their_clients",
]


def __dir__() -> list[str]:
    return __all__
