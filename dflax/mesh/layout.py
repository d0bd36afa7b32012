"""Devices of one or several hosts: the mesh axis "clients", and where each part of a state lives."""

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from dflax import validation
from dflax.algorithm import FederatedState
from dflax.clients import CLIENTS, MODEL, is_planned, shared_axis


def start_hosts(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 300,
) -> None:
    """Joins this process to the others of a run, so that `jax.devices()` lists those of all hosts.

    Call it before anything else of JAX, once in every process; all of them then run the same program
    with the same arguments. It is `jax.distributed.initialize` with its arguments checked.

    Args:
      coordinator: "HOST:PORT" of process 0, reachable from all hosts. Give this, `processes` and
        `process` together, or none of them: a Cloud TPU pod, Slurm and Open MPI tell JAX all three.
      processes: how many processes take part, >= 1.
      process: the number of this one, in [0, processes).
      timeout: seconds to wait for the others, >= 1.

    Raises:
      ValueError: only some of the three are given, or one is out of range; or none is given and no
        cluster is detected.
      TypeError: a count that is not an integer.
      RuntimeError: a JAX computation, or an earlier call, came first; or the others did not join.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    validation.integer("timeout", timeout, low=1)
    if coordinator is not None:
        validation.text("coordinator", coordinator)
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            f"give coordinator, processes and process together, or none of them where the cluster "
            f"tells (a TPU pod, Slurm, Open MPI); {' and '.join(missing)} missing in {given}."
        )
    if coordinator is not None and processes is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise ValueError(
                f'coordinator must be "HOST:PORT" of process 0 with a port in [1, 65535], got '
                f'{coordinator!r}. For example "10.0.0.1:1234".'
            )
        validation.integer("processes", processes, low=1)
        validation.integer(
            "process", process, low=0, high=processes - 1, fix="Count processes from 0."
        )
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=timeout)


def check_model(model: int, devices: int) -> None:
    """Refuse a number of devices for each model that does not divide them all."""
    validation.integer("model", model, low=1, high=devices)
    if devices % model:
        raise ValueError(
            f"model must divide the number of devices, {devices}, got {model}. Use a divisor, or fewer "
            "devices."
        )


def client_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """A mesh with the axis "clients" and, for models too large for a device, the axis "model".

    Args:
      devices: default all of them.
      model: devices that share each model, >= 1 and a divisor of their number; 1 leaves the axis out.

    Raises:
      TypeError, ValueError: `model` is no such number; `devices` are no devices.

    Examples:
      >>> import jax, dflax as dx
      >>> mesh = dx.client_mesh(jax.devices()[:1])
      >>> dict(mesh.shape)
      {'clients': 1}
    """
    if devices is not None:
        fix = "Pass for example jax.devices()[:2]."
        validation.instance("devices", devices, (Sequence, np.ndarray), fix)
        for place, device in enumerate(devices):
            validation.instance(f"devices[{place}]", device, jax.Device, fix)
        if not len(devices):
            raise ValueError(f"devices must list at least one device, got none. {fix}")
    devices = jax.devices() if devices is None else list(devices)
    check_model(model, len(devices))
    sides = {CLIENTS: len(devices) // model} | ({MODEL: model} if model > 1 else {})
    kinds = (AxisType.Auto,) * len(sides)
    return jax.make_mesh(tuple(sides.values()), tuple(sides), axis_types=kinds, devices=devices)


def state_sharding(state: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a state.

    Leaves under `clients` of a `FederatedState` are split over the mesh axis "clients". A leaf whose
    client count the axis does not divide is not split: correct, at the price of memory. On a mesh
    with the axis "model", the last axis of a leaf that it divides is split over it. Everything else
    is replicated.

    Args:
      state: any state; one that is no `FederatedState` is replicated whole.
      mesh: a mesh with the axis "clients".

    Raises:
      TypeError: `mesh` is none.
      ValueError: the mesh has no such axis, or a leaf under `clients` has no axis of clients.
    """
    validation.arrays("state", state)
    _require_mesh(mesh)

    def over_model(shape: tuple[int, ...]) -> list[str | None]:
        shared = shared_axis(shape, dict(mesh.shape).get(MODEL, 1))
        return [MODEL if axis == shared else None for axis in range(len(shape))]

    def shared(leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*over_model(leaf.shape)))

    def per_client(leaf: Any) -> NamedSharding:
        if not leaf.shape:
            raise ValueError(
                "state.clients must have leaves with the leading axis n, got a scalar. Put what "
                "exists once under state.server."
            )
        lead = CLIENTS if leaf.shape[0] % mesh.shape[CLIENTS] == 0 else None
        return NamedSharding(mesh, PartitionSpec(lead, *over_model(leaf.shape[1:])))

    if isinstance(state, FederatedState):
        return state._replace(
            round=NamedSharding(mesh, PartitionSpec()),  # type: ignore[arg-type]
            server=jax.tree.map(shared, state.server),
            clients=jax.tree.map(per_client, state.clients),
        )
    return jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec()), state)


def shard(state: Any, mesh: Mesh) -> Any:
    """The state laid out over the mesh by `state_sharding`; on several hosts see `place`."""
    return place(state, state_sharding(state, mesh))


def place(tree: PyTree[Array], layout: PyTree[NamedSharding] | NamedSharding) -> PyTree[Array]:
    """The tree laid out over devices, of several hosts as well.

    On one host this is `jax.device_put`. On several, every process passes the same values and keeps
    the parts that its own devices hold; a checksum of every leaf, not the leaf, travels to verify it.

    Args:
      tree: arrays; those already spread over several hosts are moved to the new layout.
      layout: one sharding for all leaves, or a tree of them.

    Raises:
      ValueError: a leaf differs between the processes.
    """
    validation.arrays("tree", tree)
    if isinstance(layout, NamedSharding):
        layout = jax.tree.map(lambda leaf: layout, tree)
    shardings = jax.tree.leaves(layout)
    fix = "Pass one sharding, or what state_sharding(tree, mesh) gives."
    for sharding in shardings:
        validation.instance("layout", sharding, NamedSharding, fix)
        if is_planned(sharding.mesh):
            raise ValueError(
                "layout must be of devices of this machine, got a mesh of one that is not here: nothing "
                "can be put there. Pass shapes and dflax.profile.round(..., mesh=mesh)."
            )
    if len(shardings) != len(jax.tree.leaves(tree)):
        raise ValueError(f"layout must have one sharding for each leaf of the tree. {fix}")
    if all(sharding.is_fully_addressable for sharding in shardings):
        return jax.device_put(tree, layout)
    named, structure = jax.tree_util.tree_flatten_with_path(tree)
    _verify_same_on_all_hosts(
        {jax.tree_util.keystr(path): leaf for path, leaf in named if not _spread(leaf)}
    )
    placed = [
        jax.device_put(leaf, sharding) if _spread(leaf) else _from_host(leaf, sharding)
        for (_, leaf), sharding in zip(named, shardings, strict=True)
    ]
    return jax.tree.unflatten(structure, placed)


def replicate_source(source: Any, mesh: Mesh) -> Any:
    """A run's source on every device; leaves already laid out over this mesh stay where they are."""
    _require_mesh(mesh)
    validation.arrays("source", source)
    everywhere = NamedSharding(mesh, PartitionSpec())
    leaves, structure = jax.tree.flatten(source)
    moving = [number for number, leaf in enumerate(leaves) if not _on(leaf, mesh)]
    moved = place([leaves[number] for number in moving], everywhere)
    for number, leaf in zip(moving, moved, strict=True):
        leaves[number] = leaf
    return jax.tree.unflatten(structure, leaves)


def collect(tree: PyTree[Array]) -> PyTree[np.ndarray]:
    """Whole NumPy arrays on every host, of leaves spread over several; all processes must call it."""
    validation.arrays("tree", tree)

    def whole(leaf: Any) -> np.ndarray:
        if not _spread(leaf) or leaf.is_fully_replicated:
            return np.asarray(leaf)
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, tree)


def host_clients(clients: int, mesh: Mesh, process: int | None = None) -> range:
    """The clients that one host computes: what it must be able to read the examples of.

    Device d of D computes clients d ceil(n / D), ..., (d + 1) ceil(n / D) - 1 of n, as `map_clients`
    deals them when all take part; a host has the clients of its devices.

    Args:
      clients: n >= 1.
      mesh: a mesh with the axis "clients" on which the devices of a host follow each other, as
        `client_mesh()` makes it.
      process: the host's number; default this one.

    Raises:
      ValueError: no such process, or its devices do not follow each other on the mesh.
      TypeError: a count that is not an integer.
    """
    validation.integer("clients", clients, low=1)
    _require_mesh(mesh)
    process = jax.process_index() if process is None else process
    validation.integer("process", process, low=0)
    owners = np.array([device.process_index for device in mesh.devices.flat])
    (places,) = np.nonzero(owners == process)
    if len(places) == 0 or places[-1] - places[0] >= len(places):
        raise ValueError(
            f"process must have devices that follow each other on the mesh, got process {process} "
            f"and devices of processes {owners.tolist()}. Make the mesh with dflax.client_mesh()."
        )
    block = -(-clients // len(owners))
    first, last = int(places[0]) * block, (int(places[-1]) + 1) * block
    return range(min(first, clients), min(last, clients))


def _require_mesh(mesh: Mesh) -> None:
    fix = "Make one with dflax.client_mesh()."
    validation.instance("mesh", mesh, Mesh, fix)
    if CLIENTS not in mesh.axis_names:
        raise ValueError(
            f'mesh must have an axis named "{CLIENTS}", got axes {mesh.axis_names}. {fix}'
        )


def _spread(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _on(leaf: Any, mesh: Mesh) -> bool:
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and sharding.mesh == mesh


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)


def _from_host(leaf: Any, sharding: NamedSharding) -> Array:
    if _is_key(leaf):
        data = _from_host(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _verify_same_on_all_hosts(leaves: dict[str, Any]) -> None:
    from jax.experimental import multihost_utils

    if not leaves:
        return

    def checksum(leaf: Any) -> int:
        values = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        about = f"{values.dtype} {values.shape}".encode()
        flat = np.ascontiguousarray(values).reshape(-1)
        return zlib.crc32(flat.view(np.uint8).data, zlib.crc32(about))

    mine = np.array([checksum(leaf) for leaf in leaves.values()], np.uint32)
    everyones = np.asarray(multihost_utils.process_allgather(mine))
    differing = np.flatnonzero(np.any(everyones != everyones[:1], axis=0))
    if len(differing):
        names = ", ".join(list(leaves)[number] or "(the array itself)" for number in differing[:4])
        raise ValueError(
            f"every process must pass the same values, but {len(differing)} of {len(leaves)} leaves "
            f"differ: {names}. Use the same seeds and the same data on every host."
        )


__all__ = [
    "client_mesh",
    "collect",
    "host_clients",
    "place",
    "replicate_source",
    "shard",
    "start_hosts",
    "state_sharding",
]


def __dir__() -> list[str]:
    return __all__
