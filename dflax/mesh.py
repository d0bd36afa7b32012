"""Devices: a mesh with the axis "clients", and where each part of a state lives on it."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dflax.algorithm import FederatedState
from dflax.clients import CLIENTS


def client_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, "clients", over the given devices (default: all of them)."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (CLIENTS,), axis_types=(AxisType.Auto,), devices=devices)


def state_sharding(state: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a state.

    Leaves under `clients` of a `FederatedState` are split over the mesh axis "clients"; everything
    else is replicated. A leaf whose client count the axis does not divide is replicated as well:
    correct, at the price of memory.

    Args:
      state: any state; one that is no `FederatedState` is replicated whole.
      mesh: a mesh with the axis "clients".

    Raises:
      ValueError: the mesh has no such axis.
    """
    if CLIENTS not in mesh.axis_names:
        raise ValueError(
            f'mesh must have an axis named "{CLIENTS}", got axes {mesh.axis_names}. '
            "Make one with dflax.client_mesh()."
        )
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(CLIENTS))

    def per_client(leaf: Any) -> NamedSharding:
        return split if leaf.shape[0] % mesh.shape[CLIENTS] == 0 else everywhere

    if not isinstance(state, FederatedState):
        return jax.tree.map(lambda leaf: everywhere, state)
    return state._replace(
        round=everywhere,
        server=jax.tree.map(lambda leaf: everywhere, state.server),
        clients=jax.tree.map(per_client, state.clients),
    )


def shard(state: Any, mesh: Mesh) -> Any:
    """The state laid out over the mesh by `state_sharding`."""
    return jax.device_put(state, state_sharding(state, mesh))
