"""The models that clients hear, brought to the devices that compute those clients and no farther."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, PyTree

from dflax.clients import CLIENTS, DealtWithClients, client_devices, everywhere
from dflax.clients.devices import on_owners
from dflax.topology import Graph

# Rows of the block of clients that lies so many devices before: their first, and the end of them.
Piece = tuple[int, int, int]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Heard(DealtWithClients):
    """All models of which a client may hear some; made by `heard`, passed on as `map_clients(shared=)`.

    Attributes:
      rows: leaves `[n, ...]`; or `[D w, ...]` where D devices hold the w rows each that they need.
      starts: `[D]` where among a device's rows those begin of the block so many devices before.
      block: clients a device (static).
      devices: D (static); 1 where every device holds all models.
    """

    rows: PyTree[Array]
    starts: Int[Array, " D"]
    block: int = dataclasses.field(metadata={"static": True})
    devices: int = dataclasses.field(metadata={"static": True})

    def layout(self, devices: int) -> Any:
        """Each device its own rows where they are dealt, else everything to each."""
        spread = PartitionSpec(CLIENTS) if devices == self.devices else PartitionSpec()
        rows = jax.tree.map(lambda leaf: spread, self.rows)
        whole: Any = PartitionSpec()
        return dataclasses.replace(self, rows=rows, starts=whole)

    def by(
        self,
        client: Int[Array, ""],
        neighbours: Int[Array, " k"],
        entries: Int[Array, " k"] | None = None,
    ) -> PyTree[Array]:
        """The neighbours' models, leaves `[k, ...]`; any for who is no neighbour of the client.

        With `entries` one entry of each neighbour's row, of rows `[n, j, ...]`.
        """
        blocks_before = (client // self.block - neighbours // self.block) % self.devices
        place = self.starts[blocks_before] + neighbours % self.block
        where = place if entries is None else (place, entries)
        return jax.tree.map(lambda leaf: leaf.at[where].get(mode="clip"), self.rows)


def heard(models: PyTree[Array], graph: Graph | None) -> Heard:
    """What clients hear along a graph; where it is None, anyone may hear anyone.

    Where n clients are dealt over devices, a device gets the rows that its clients hear: on a ring the
    boundary rows alone, by collective permutes. Where it would need all rows, it gets all.

    Args:
      models: leaves `[n, ...]`.
      graph: of n nodes, known when the program is made.
    """
    clients = jax.tree.leaves(models)[0].shape[0]
    devices = 1 if graph is None else client_devices(clients)
    pieces = [] if graph is None else _pieces(graph, devices)
    if devices == 1 or sum(high - low for _, low, high in pieces) >= clients:
        return Heard(everywhere(models), jnp.zeros(1, jnp.int32), clients, 1)
    starts, width = np.zeros(devices, np.int32), 0
    for before, low, high in pieces:
        starts[before] = width - low
        width += high - low

    def bring(own: Array) -> Array:
        """A device's own rows to those that it needs, each of which travels once."""
        parts = [_passed_on(own[low:high], before, devices) for before, low, high in pieces]
        return jnp.concatenate(parts)

    rows = jax.tree.map(on_owners(bring, PartitionSpec(CLIENTS)), models)
    return Heard(rows, jnp.asarray(starts), clients // devices, devices)


def _passed_on(rows: Array, before: int, devices: int) -> Array:
    """The rows of the device that lies so many before."""
    if not before:
        return rows
    pairs = [(device, (device + before) % devices) for device in range(devices)]
    return jax.lax.ppermute(rows, CLIENTS, pairs)


def _pieces(graph: Graph, devices: int) -> list[Piece]:
    """The rows that some device needs; relative to itself, every device gets the same ones."""
    block = graph.nodes // devices
    before = (graph.receivers // block - graph.senders // block) % devices
    rows = graph.senders % block
    return [
        (int(one), int(rows[before == one].min()), int(rows[before == one].max()) + 1)
        for one in np.unique(before)
    ]
