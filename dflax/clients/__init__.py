"""The client axis: map over clients, gather and scatter cohorts, reduce over them."""

from dflax.clients.devices import (
    CLIENTS,
    DealtWithClients,
    client_devices,
    everywhere,
    is_planned,
    platform,
)
from dflax.clients.mapping import map_clients, map_cohort, map_present
from dflax.clients.reductions import mean_metrics, weighted_mean, weighted_sum
from dflax.clients.rows import against, gather, replicate, require_structure, scatter, select

__all__ = [
    "CLIENTS",
    "DealtWithClients",
    "against",
    "client_devices",
    "everywhere",
    "gather",
    "is_planned",
    "map_clients",
    "map_cohort",
    "map_present",
    "mean_metrics",
    "platform",
    "replicate",
    "require_structure",
    "scatter",
    "select",
    "weighted_mean",
    "weighted_sum",
]


def __dir__() -> list[str]:
    return __all__
