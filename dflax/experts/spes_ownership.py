"""Who owns which experts: slices of stacked matrices, cut out, put back and collected."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining
from dflax.algorithm import Metrics, Params
from dflax.clients import everywhere, weighted_mean
from dflax.data.dataset import AnyArray
from dflax.parts import Chooser, joined, name_of, part


class Ownership(NamedTuple):
    """Which leaves are experts and which of them each node trains; make one with `ownership`.

    Attributes:
      first: `[N]`, the first expert of each node.
      held: q, how many it has.
      experts: E = q N.
      where: whether a leaf holds experts, by its path.
    """

    first: np.ndarray
    held: int
    experts: int
    where: Chooser

    def divide(self, params: Params) -> tuple[PyTree[Array], PyTree[Array]]:
        """What all nodes train, and the experts, with None in the place of the other.

        Raises:
          ValueError: no leaf of experts or none of the rest, or one of another number of experts.
        """
        experts = part(params, self.where)
        shared = part(params, lambda path: not self.where(path))
        for kept, fault in ((experts, "none"), (shared, "all")):
            if not jax.tree.leaves(kept):
                paths = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
                raise ValueError(
                    f"where must choose some leaves, the experts, and leave some, got {fault} of "
                    f"{validation.shown(paths)}."
                )
        for path, leaf in jax.tree_util.tree_leaves_with_path(experts):
            if jnp.ndim(leaf) < 1 or leaf.shape[0] != self.experts:
                raise ValueError(
                    f"experts must be the first axis of every leaf that where chooses, got "
                    f"{self.experts} and {name_of(path)!r} of shape {jnp.shape(leaf)}."
                )
        return shared, experts

    def own(self, experts: PyTree[Array], first: Int[Array, ""]) -> PyTree[Array]:
        """A node's experts, leaves `[q, ...]`."""
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, self.held, 0), experts
        )

    def whole(
        self,
        shared: PyTree[Array],
        experts: PyTree[Array],
        own: PyTree[Array],
        first: Int[Array, ""],
        as_seen: Callable[[Array, Array, Array], Any],
    ) -> Params:
        """A node's model: what it trains, and the others' experts as they were."""
        seen = jax.tree.map(lambda leaf, mine: as_seen(leaf, mine, first), experts, own)
        return joined(shared, seen)


def ownership(
    experts: int,
    nodes: int,
    slices: Int[AnyArray, "N 2"] | None = None,
    where: Chooser | None = None,
) -> Ownership:
    """Slices of the experts, the same in all layers.

    Args:
      experts: E >= 1.
      nodes: N >= 1.
      slices: `[N, 2]`, node i owns the experts slices[i, 0], ..., slices[i, 1] - 1; of equal length,
        and together every expert once. None: node i has i q, ..., (i + 1) q - 1, with q = E / N.
      where: whether a leaf holds experts, leading with them, by its path, names joined by "/"; default
        those of `dflax.models.MoE`: the leaves of a node named "experts" other than the router's.

    Raises:
      TypeError, ValueError: naming the argument: N that does not divide E, an expert that nobody owns,
        or two do.
    """
    validation.integer("experts", experts, low=1)
    validation.integer("nodes", nodes, low=1)
    where = _of_mixture if where is None else where
    validation.function(
        "where", where, "It says of a path whether that leaf holds experts.", takes=1
    )
    if experts % nodes:
        raise ValueError(
            f"nodes must divide the number of experts = {experts}, got {nodes}. Each owns as many."
        )
    count = experts // nodes
    if slices is None:
        return Ownership(np.arange(0, experts, count, dtype=np.int32), count, experts, where)
    fix = "Pass rows (first, end), one for each node, end not included."
    table = validation.array("slices", slices, kind="integer", shape=(nodes, 2), fix=fix)
    table = np.asarray(table)
    owners = np.zeros(experts, int)
    for node, (first, end) in enumerate(table):
        if not 0 <= first < end <= experts or end - first != count:
            raise ValueError(
                f"slices must each have {count} of the experts 0, ..., {experts - 1}, got "
                f"({first}, {end}) for node {node}."
            )
        owners[first:end] += 1
    for fault, those in (("nobody", owners == 0), ("two nodes", owners > 1)):
        if those.any():
            raise ValueError(
                f"slices must give every expert to one node, got {fault} for the experts "
                f"{np.flatnonzero(those).tolist()}."
            )
    return Ownership(table[:, 0].astype(np.int32), count, experts, where)


def _of_mixture(path: str) -> bool:
    names = path.split("/")
    return "experts" in names[:-1] and "router" not in names


class Upload(NamedTuple):
    """What a node sends, or what all nodes' uploads come to.

    Attributes:
      shared: what all nodes train.
      experts: the node's own, leaves `[q, ...]`; of all of them together `[E, ...]`.
      there: of all of them together `[E]`, whose owner sent them; None in a message.
    """

    shared: PyTree[Array]
    experts: PyTree[Array]
    there: Bool[Array, " E"] | None = None


def collected(owns: Ownership) -> Aggregator:
    """The mean of what all nodes train, and each expert from its owner, without any arithmetic.

    Args:
      owns: who owns what.

    Returns:
      An `Aggregator` of `Upload`s. Experts of an owner that did not report are 0, and not `there`.
    """
    place = owns.first // owns.held
    nodes = len(place)

    def gives(message: Upload) -> Upload:
        def every(leaf: Array) -> Array:
            return jnp.zeros((owns.experts, *leaf.shape[1:]), leaf.dtype)

        experts = jax.tree.map(every, message.experts)
        return Upload(message.shared, experts, jnp.zeros(owns.experts, bool))

    def apply(
        messages: Upload, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Upload, tuple[()], Metrics]:
        senders = combining.senders
        assert senders is not None, "a round with a server says who sends"
        # Off the end, where it is dropped, for who does not report.
        target = jnp.where(weights > 0, jnp.asarray(place)[senders], nodes)

        def put(leaf: Array) -> Array:
            empty = jnp.zeros((nodes, *leaf.shape[1:]), leaf.dtype)
            rows = empty.at[target].set(leaf, mode="drop", unique_indices=True)
            return rows.reshape(owns.experts, *leaf.shape[2:])

        there = put(jnp.ones((len(target), owns.held), bool))
        # Every node goes on with all experts, so every device gets all that own some: one all-gather.
        experts = jax.tree.map(put, everywhere(messages.experts))
        return Upload(weighted_mean(messages.shared, weights), experts, there), state, {}

    return Aggregator(lambda message: (), apply, gives=gives)


def size_of(tree: Any) -> float:
    """How many numbers a tree has."""
    return float(sum(leaf.size for leaf in jax.tree.leaves(tree)))
