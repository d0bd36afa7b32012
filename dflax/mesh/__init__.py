"""Devices of one or several hosts, or of a machine that is not here: the mesh axis "clients"."""

from dflax.clients import MODEL
from dflax.mesh.layout import (
    client_mesh,
    collect,
    host_clients,
    place,
    replicate_source,
    shard,
    start_hosts,
    state_sharding,
)
from dflax.mesh.planned import planned

__all__ = [
    "MODEL",
    "client_mesh",
    "collect",
    "host_clients",
    "place",
    "planned",
    "replicate_source",
    "shard",
    "start_hosts",
    "state_sharding",
]


def __dir__() -> list[str]:
    return __all__
