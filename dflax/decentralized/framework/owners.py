"""Events at a few nodes, computed by the devices that own them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from dflax.clients import CLIENTS, against, client_devices

T = TypeVar("T")


class Places(NamedTuple):
    """Where the rows of some nodes lie, as the device sees it that computes.

    Attributes:
      at: `[k]`, or `[]` for one node; the row of each among the device's own rows.
      owned: of the same shape, whether the row is one of them; None where the device has all rows.
    """

    at: Int[Array, "*k"]
    owned: Bool[Array, "*k"] | None = None

    def one(self, number: int) -> "Places":
        """Of one of the nodes."""
        return Places(self.at[number], None if self.owned is None else self.owned[number])

    def split(self, cuts: Sequence[int]) -> list["Places"]:
        """Of the nodes between cuts, as `jnp.split` has them."""
        at = jnp.split(self.at, cuts)
        if self.owned is None:
            return [Places(part) for part in at]
        return [Places(*parts) for parts in zip(at, jnp.split(self.owned, cuts), strict=True)]

    def read(self, tree: PyTree[Array]) -> PyTree[Array]:
        """The nodes' rows, leaves `[k, ...]` or `[...]`; anyone's for a node that is not here."""
        if self.at.ndim:
            return jax.tree.map(lambda leaf: leaf.at[self.at].get(mode="clip"), tree)
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, self.at, keepdims=False), tree
        )

    def write(self, tree: PyTree[Array], rows: PyTree[Array]) -> PyTree[Array]:
        """The tree with these rows replaced; those of nodes that are not here are dropped.

        Inside a compiled loop this happens in place where nothing reads the old tree after the first
        write: read all rows beforehand, and pass them through a `jax.lax.cond`, which keeps the
        compiler from reading them again later.
        """
        if self.at.ndim or self.owned is not None:
            return self._changed(tree, rows, lambda at, new: at.set(new, mode="drop"))
        return jax.tree.map(
            lambda leaf, new: jax.lax.dynamic_update_index_in_dim(
                leaf, jnp.asarray(new).astype(leaf.dtype), self.at, 0
            ),
            tree,
            rows,
        )

    def add(self, tree: PyTree[Array], rows: PyTree[Array]) -> PyTree[Array]:
        """The tree with something added to these rows."""
        return self._changed(tree, rows, lambda at, new: at.add(new, mode="drop"))

    def apply(self, function: Callable[..., T], rows: T, *others: Any) -> T:
        """`function(row, *others)` of every node `[k]`, a device's own; other rows stay as they are.

        Args:
          function: to a row of the same form.
          rows: as they were read.
          *others: leaves `[k, ...]`.
        """
        if self.owned is None:
            return jax.vmap(function)(rows, *others)

        def one(turn: tuple[Any, ...]) -> T:
            owned, *given = turn
            return jax.lax.cond(owned, function, lambda row, *others: row, *given)

        return jax.lax.map(one, (self.owned, rows, *others))

    def _changed(
        self, tree: PyTree[Array], rows: PyTree[Array], change: Callable[[Any, Array], Array]
    ) -> PyTree[Array]:
        def of(leaf: Array, new: Any) -> Array:
            # Behind the end for nodes that are not here.
            at = self.at if self.owned is None else jnp.where(self.owned, self.at, len(leaf))
            return change(leaf.at[at], jnp.asarray(new).astype(leaf.dtype))

        return jax.tree.map(of, tree, rows)


def difference(
    first: Places, second: Places, ones: PyTree[Array], others: PyTree[Array]
) -> PyTree[Array]:
    """`one - other` of nodes with different owners, known to all devices afterwards.

    One all-reduce of one message each. Which nodes meet is known only when the program runs, so no
    permutation can be compiled that sends it to the two alone.

    Args:
      first: of the nodes that `ones` are of.
      second: of those that `others` are of.
      ones: leaves `[k, ...]`, or `[...]`.
      others: likewise.
    """

    def of_owners(one: Array, other: Array) -> Array:
        if first.owned is None or second.owned is None:
            return one - other
        pairs = ((first.owned, one), (second.owned, other))
        told = (jnp.where(against(owned, leaf), leaf, 0) for owned, leaf in pairs)
        return jax.lax.psum(jnp.subtract(*told), CLIENTS)

    return jax.tree.map(of_owners, ones, others)


def at_owners(
    function: Callable[..., T], nodes: Int[Array, " k"], tree: T, *shared: PyTree[Array]
) -> T:
    """`function(places, tree, *shared)`, by every device on the rows that it owns of the n nodes.

    Nothing is sent but what the function sends, by `difference`.

    Args:
      function: to a tree of the same form.
      nodes: numbers in [0, n); larger ones are nobody's, and nothing is written for them.
      tree: leaves `[n, ...]`.
      *shared: what every device has whole.
    """
    count = jax.tree.leaves(tree)[0].shape[0]
    if client_devices(count) == 1:
        return function(Places(nodes), tree, *shared)

    def own(tree: T, nodes: Array, shared: tuple[Any, ...]) -> T:
        rows = jax.tree.leaves(tree)[0].shape[0]
        at = nodes - jax.lax.axis_index(CLIENTS).astype(nodes.dtype) * rows
        owned = (at >= 0) & (at < rows)
        return function(Places(jnp.where(owned, at, 0), owned), tree, *shared)

    return jax.shard_map(
        own,
        in_specs=(PartitionSpec(CLIENTS), PartitionSpec(), PartitionSpec()),
        out_specs=PartitionSpec(CLIENTS),
        axis_names={CLIENTS},
        check_vma=False,
    )(tree, nodes, shared)
