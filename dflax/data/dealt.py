"""Examples dealt to the devices that compute their owners, so that no host holds the whole data set."""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from dflax import validation
from dflax.clients import CLIENTS, DealtWithClients, against, is_planned
from dflax.data.dataset import Batch, Dataset
from dflax.data.partition import Partition

# Rounds of a participation that are looked at before any is run.
ROUNDS_LOOKED_AT = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dealt(Dataset, DealtWithClients):
    """A data set in D blocks of L rows, block d on device d; made by `deal`.

    Row r lies in block r // L. Where a device holds one block, row r is its local row r mod L; where
    everything is in one place, that is the identity, so the same minibatch indices serve both.

    Attributes:
      devices: D (static).
      block: L (static); the other attributes are those of `Dataset`.
    """

    devices: int = dataclasses.field(default=1, metadata={"static": True})
    block: int = dataclasses.field(default=0, metadata={"static": True})

    def layout(self, devices: int) -> Any:
        """How `map_clients` spreads this over so many devices: dealt over D, else replicated."""
        rows = PartitionSpec(CLIENTS) if devices == self.devices else PartitionSpec()
        everywhere = jax.tree.map(lambda leaf: PartitionSpec(), self)
        inputs = jax.tree.map(lambda leaf: rows, self.inputs)
        return dataclasses.replace(everywhere, inputs=inputs, labels=rows)

    def fetch(self, indices: Int[Array, " B"], key: Key[Array, ""] | None = None) -> Batch:
        """The minibatch of some rows; NaN in real inputs of a row that this device does not hold."""
        rows, empty = indices % len(self), indices < 0
        batch = super().fetch(jnp.where(empty, indices, rows) if self.masked else rows, key)
        if len(self) != self.block or self.devices == 1:
            return batch
        here = indices // self.block == jax.lax.axis_index(CLIENTS)
        # A place without an example is on no device, and asks for none.
        here = here | empty if self.masked else here
        return batch._replace(inputs=jax.tree.map(lambda x: _or_nan(here, x), batch.inputs))


def deal(federation: Any, mesh: Mesh) -> Any:
    """The federation with the examples of every client on the device that computes it, and only there.

    With n clients on D devices, device d holds the examples of clients d ceil(n / D), ...,
    (d + 1) ceil(n / D) - 1 and is filled up to the largest device's number of rows. The memory a device
    needs for examples falls from N rows to about N / D, and a round exchanges none of them. Minibatches
    are the same examples as before, so results agree up to the order of floating-point sums.

    A process reads the rows of its own devices alone: with `inputs` a memory-mapped NumPy array (one
    `numpy.load(..., mmap_mode="r")` on every host) a host never holds more than its clients' data.
    Labels and the partition are read whole.

    Args:
      federation: a `dflax.Federation` on a `Partition`, in which every client takes part in every
        round (dropout and stragglers are allowed, they do not move clients), or whose cohorts have
        the same number of members from each device's clients, in the order of the devices.
      mesh: a mesh with the axis "clients"; pass the same one to `dflax.run`. Of a machine that is not
        here (`dflax.mesh.planned`) the dealt examples are shapes, for `dflax.profile.round`.

    Returns:
      A federation for `dflax.run(..., mesh=mesh)`. Its data set is for training only: evaluate on
      another one.

    Raises:
      TypeError: no federation or no mesh, or the federation's partition is not a `Partition`.
      ValueError: the data are dealt already, cohorts put clients on other devices, or the mesh has no
        axis "clients".
    """
    # By what it has, as federations are made of data sets and not the other way round.
    if not all(hasattr(federation, name) for name in ("data", "partition", "participation")):
        raise TypeError(
            f"federation must be a dflax.Federation, got {validation.shown(federation)}."
        )
    validation.instance("mesh", mesh, Mesh, "Make one with dflax.client_mesh().")
    if CLIENTS not in mesh.axis_names:
        raise ValueError(
            f'mesh must have an axis named "{CLIENTS}", got axes {mesh.axis_names}. '
            "Make one with dflax.client_mesh()."
        )
    partition, data = federation.partition, federation.data
    if not isinstance(partition, Partition):
        raise TypeError(
            f"federation must have a Partition of examples, got {type(partition).__name__}. Where "
            "clients draw from shared examples, every device needs all of them: leave them whole."
        )
    if isinstance(data, Dealt):
        raise ValueError("federation must have whole data, got data that are dealt already.")
    devices = mesh.shape[CLIENTS]
    _verify_clients_stay(federation, devices)

    lists = partition.as_lists()
    per_device = -(-len(lists) // devices)
    blocks = [
        np.unique(np.concatenate([np.zeros(0, np.int32), *lists[first : first + per_device]]))
        for first in range(0, devices * per_device, per_device)
    ]
    length = max(len(block) for block in blocks)
    # The fill repeats an example, so that reading it is always defined; no client owns it.
    rows = np.concatenate([np.resize(block if len(block) else [0], length) for block in blocks])
    owner = np.repeat(np.arange(len(lists)) // per_device, np.asarray(partition.sizes))
    flat = np.concatenate(lists)
    local = np.empty_like(flat)
    for device, block in enumerate(blocks):
        mine = owner == device
        local[mine] = np.searchsorted(block, flat[mine]) + device * length

    split = NamedSharding(mesh, PartitionSpec(CLIENTS))

    def spread(stored: Any) -> Any:
        shape = (len(rows), *stored.shape[1:])
        if is_planned(mesh):
            return jax.ShapeDtypeStruct(shape, stored.dtype, sharding=split)
        stored = stored if isinstance(stored, np.ndarray) else np.asarray(stored)

        def part(index: Any) -> np.ndarray:
            return stored[rows[index[0]]]

        return jax.make_array_from_callback(shape, split, part)

    dealt = copy.copy(federation)
    fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(Dataset)}
    fields |= {"inputs": jax.tree.map(spread, data.inputs), "labels": spread(data.labels)}
    dealt.data = Dealt(**fields, devices=devices, block=length)
    dealt.partition = dataclasses.replace(partition, indices=jnp.asarray(local, jnp.int32))
    return dealt


def _verify_clients_stay(federation: Any, devices: int) -> None:
    clients = federation.clients

    def cohort(index: Array) -> Array | None:
        key = jax.random.fold_in(jax.random.key(0), index)
        return federation.participation(key, index, clients).clients

    if jax.eval_shape(cohort, jnp.int32(0)) is None:
        return
    drawn = np.asarray(jax.jit(jax.vmap(cohort))(jnp.arange(ROUNDS_LOOKED_AT, dtype=jnp.int32)))
    home = drawn // -(-clients // devices)
    members = drawn.shape[1]
    computing = np.arange(members) // -(-members // devices)
    if np.any(home != computing):
        wrong, member = np.argwhere(home != computing)[0]
        raise ValueError(
            f"federation must have cohorts in which device d computes its own clients, got client "
            f"{drawn[wrong, member]} on device {computing[member]} of {devices} in round {wrong}, "
            f"whose examples are on device {home[wrong, member]}. Let everyone take part (with "
            "dflax.participation.dropout for those who do not report), or do not deal the data."
        )


def _or_nan(here: Array, values: Array) -> Array:
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    return jnp.where(against(here, values), values, jnp.nan)
