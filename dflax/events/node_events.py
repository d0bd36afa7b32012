"""A source of events at single nodes, each with the examples that its gradient needs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dflax import counter, validation
from dflax.data.dataset import Batch, Dataset, Split
from dflax.data.partition import Partition
from dflax.events.stream import Groups, Stream


class NodeEvent(NamedTuple):
    """What `NodeEvents` hands to a step.

    Attributes:
      event: a row of a `Stream`, or of `Groups`.
      examples: `[2, B]` int32 examples of the stream's two nodes; `[G, B]` of a group's gradients.
      mask: of the same shape, 0 for padding; None when all examples count.
      keys: `[2]` or `[G]` typed keys, one per gradient.
      data: the data set that the examples are of.
    """

    event: Any
    examples: Int[Array, "k B"]
    mask: Float[Array, "k B"] | None
    keys: Key[Array, " k"]
    data: Dataset

    def batch(self, place: int | Int[Array, ""]) -> Batch:
        """The examples of one of the nodes, decoded."""
        batch = self.data.fetch(self.examples[place])
        return batch if self.mask is None else batch._replace(mask=self.mask[place])


@jax.tree_util.register_pytree_with_keys_class
class NodeEvents:
    """Nodes with their data and a stream of events: event t of the run is row t of the stream.

    Args:
      data: training examples; of a `Split` the training part.
      partition: who owns what, one client per node.
      events: a `Stream`, or `Groups` of events that are executed together.
      batch_size: B, examples per gradient, drawn uniformly with replacement; None takes all that a node
        has, so that gradients are exact.

    Raises:
      TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        data: Dataset | Split,
        partition: Partition,
        events: Stream | Groups,
        *,
        batch_size: int | None = None,
    ):
        data = data.train if isinstance(data, Split) else data
        validation.instance("data", data, Dataset, "Make one with dflax.data.from_arrays.")
        validation.instance("partition", partition, Partition, "Make one with dflax.data.")
        fix = "Make one with dflax.gossip.poisson_stream(rates, events, seed=0)."
        validation.instance("events", events, (Stream, Groups), fix)
        if batch_size is not None:
            validation.integer("batch_size", batch_size, low=1)
        nodes = events.law.rates.nodes
        if partition.clients != nodes:
            raise ValueError(
                f"partition must have {nodes} clients, one for each node of the events, got "
                f"{partition.clients} and events of {events.law.described}. Deal the data to as many "
                "clients as the graph has nodes, or draw events with the rates of the graph meant."
            )
        self.data: Dataset = data
        self.partition: Partition = partition
        self.events: Stream | Groups = events
        self.batch_size = batch_size
        self.table: Array | None = None
        self.mask: Array | None = None
        if batch_size is None:
            self.table, self.mask = _whole(partition)

    @property
    def clients(self) -> int:
        """n, the number of nodes."""
        return self.partition.clients

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> NodeEvent:
        """Event number `index`, or row number `index` of the groups."""
        event = jax.tree.map(lambda column: column[index], self.events)
        if isinstance(event, Stream):
            nodes, numbers = event.nodes, jnp.stack([event.number, event.number])
        else:
            nodes, numbers = event.gradient_nodes, event.gradient_numbers
        nodes = jnp.minimum(nodes, self.clients - 1)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
        if self.table is not None:
            mask = None if self.mask is None else self.mask[nodes]
            return NodeEvent(event, self.table[nodes], mask, keys, self.data)
        size = int(self.batch_size or 1)
        drawn = self.partition.minibatches(
            counter.seed_of(key), nodes, numbers * size, 1, size, True
        )
        return NodeEvent(event, drawn[:, 0], None, keys, self.data)

    _arrays = ("data", "partition", "events", "table", "mask")

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Arrays as children, the batch size as static structure."""
        return [
            (jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in self._arrays
        ], self.batch_size

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> "NodeEvents":
        """Rebuilds the source without checking again: its leaves may be traced."""
        events = object.__new__(cls)
        events.batch_size = static
        for name, value in zip(cls._arrays, children, strict=True):
            setattr(events, name, value)
        return events


def _whole(partition: Partition) -> tuple[Int[Array, "n B"], Float[Array, "n B"] | None]:
    """All examples of every node as a table, filled up with the node's first; no mask if none is."""
    owned = partition.as_lists()
    most = max(len(rows) for rows in owned)
    table = np.stack([np.resize(rows, most) for rows in owned])
    sizes = np.array([len(rows) for rows in owned])
    if sizes.min() == most:
        return jnp.asarray(table, jnp.int32), None
    mask = (np.arange(most) < sizes[:, None]).astype(np.float32)
    return jnp.asarray(table, jnp.int32), jnp.asarray(mask)
