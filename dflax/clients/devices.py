"""What the client axis is laid out on: the ambient mesh, its devices, its platform."""

import abc
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from dflax.programs.exchanges import gathered_by, sends, size

CLIENTS = "clients"
"""The axis of a mesh over which clients are dealt."""
MODEL = "model"
"""The axis of a mesh whose devices share a model."""


class DealtWithClients(abc.ABC):
    """Shared data of which a device holds its own clients' part; `map_clients` asks it for its layout.

    A class of its own says so. Having a method of that name does not: JAX's own arrays have a `layout`.
    """

    @abc.abstractmethod
    def layout(self, devices: int) -> Any:
        """The `PartitionSpec` of every leaf on so many devices, in a tree like this one."""


def platform() -> str:
    """What is being compiled for, "cpu", "gpu" or "tpu": every choice by platform asks here.

    The platform of the ambient mesh, which need not be one of this machine (`dflax.mesh.planned`);
    without a mesh that of JAX's default device.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return jax.default_backend() if device is None else device.platform


def is_planned(mesh: Mesh) -> bool:
    """Whether a mesh is of a machine that is not here: nothing can be put there, nor run."""
    return mesh.devices.flat[0].client.runtime_type == "compile_only_runtime"


def client_devices(count: int | None = None) -> int:
    """Over how many devices the ambient mesh deals (`count`) clients; 1 if it does not or cannot."""
    mesh = jax.sharding.get_abstract_mesh()
    if CLIENTS not in mesh.axis_names or _inside_shard_map(mesh):
        return 1
    devices = mesh.shape[CLIENTS]
    return devices if count is None or count % devices == 0 else 1


def model_devices() -> int:
    """How many devices of the ambient mesh share each model."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(MODEL, 1)


def shared_axis(shape: tuple[int, ...], sharing: int) -> int | None:
    """The axis of one client's leaf that is split over the devices that share a model; None: whole.

    Args:
      shape: of the leaf, without the clients' axis.
      sharing: how many devices share each model.
    """
    fitting = [axis for axis, size in enumerate(shape) if size and size % sharing == 0]
    return fitting[-1] if sharing > 1 and fitting else None


def everywhere(tree: PyTree[Array]) -> PyTree[Array]:
    """The tree held whole by every device of the ambient mesh; the tree itself where there is none."""
    with sends(lambda: gathered_by(client_devices(), size(tree))):
        return known_to_all(tree)


def with_their_clients(leaf: Array) -> Array:
    """The rows `[n, ...]` on the devices of their clients, however the rest of the leaf is laid out."""
    if client_devices(leaf.shape[0]) == 1:
        return leaf
    others = (PartitionSpec.UNCONSTRAINED,) * (leaf.ndim - 1)
    return jax.lax.with_sharding_constraint(leaf, PartitionSpec(CLIENTS, *others))


def known_to_all(tree: Any) -> Any:
    """`everywhere` for a few numbers, of which devices that know them need send nothing."""
    if client_devices() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), tree)


def _inside_shard_map(mesh: Any) -> bool:
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return kinds[CLIENTS] == jax.sharding.AxisType.Manual


def on_owners(function: Callable[..., Array], out: PartitionSpec) -> Callable[..., Array]:
    """Runs a function on every device's own rows; its other arguments are replicated."""

    def dealt(leaf: Array, *others: Array) -> Array:
        return jax.shard_map(
            function,
            in_specs=(PartitionSpec(CLIENTS), *(PartitionSpec() for _ in others)),
            out_specs=out,
            axis_names={CLIENTS},
            check_vma=False,
        )(leaf, *others)

    return dealt
