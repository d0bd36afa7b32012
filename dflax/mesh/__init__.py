"""Devices of one or several hosts, or of a machine that is not here: the mesh axis "clients"."""

from dflax.mesh.layout import (
    MODEL,
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
