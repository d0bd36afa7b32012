"""Rows of single nodes in stacked state: starts, reading some, writing some in place."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from dflax import counter, validation
from dflax.algorithm import Params
from dflax.clients import client_devices, gather, replicate, scatter


def starts(key: Key[Array, ""], params: Params | Callable[..., Params], nodes: int) -> Params:
    """One start for all nodes, or one of its own for each from a function `key -> start`.

    Args:
      key: typed key; split over the nodes.
      params: a pytree of real arrays, or the function.
      nodes: n.

    Returns:
      Leaves `[n, ...]`.

    Raises:
      TypeError: no typed key, or leaves that are no arrays of real numbers.
    """
    validation.typed_key("key", key)
    # A function is a leaf of its own; a model that can be called (equinox) has arrays for leaves.
    if callable(params) and jax.tree_util.all_leaves([params]):
        own = jax.random.fold_in(key, counter.OF_STARTS)
        models = jax.vmap(params)(jax.random.split(own, nodes))
        validation.model("params", models)
        return models
    validation.model("params", params)
    return replicate(params, nodes)


def read(tree: PyTree[Array], node: Int[Array, ""]) -> PyTree[Array]:
    """The row of one node: leaves `[n, ...]` to `[...]`.

    Where n nodes are dealt over devices, the owner's row is added up with zeros of the others: what
    travels is one row, never all of them.
    """
    if _dealt(tree):
        return jax.tree.map(lambda leaf: leaf[0], gather(tree, node[None]))
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, node, keepdims=False), tree)


def take(tree: PyTree[Array], nodes: Int[Array, " k"]) -> PyTree[Array]:
    """The rows of several nodes, leaves `[k, ...]`; any for numbers from n on."""
    if _dealt(tree):
        return gather(tree, nodes)
    return jax.tree.map(lambda leaf: leaf.at[nodes].get(mode="clip"), tree)


def write(tree: PyTree[Array], node: Int[Array, ""], row: PyTree[Array]) -> PyTree[Array]:
    """The tree with the row of one node replaced; inside a compiled loop this happens in place.

    It does where nothing reads the old tree after the first write: read all rows beforehand, and pass
    them through a `jax.lax.cond`, which keeps the compiler from reading them again later.
    """
    if _dealt(tree):
        return put(tree, node[None], jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], row))
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_index_in_dim(
            leaf, new.astype(leaf.dtype), node, 0
        ),
        tree,
        row,
    )


def put(tree: PyTree[Array], nodes: Int[Array, " k"], rows: PyTree[Array]) -> PyTree[Array]:
    """The tree with the rows of several nodes replaced; numbers from n on are dropped."""
    rows = jax.tree.map(lambda leaf, new: new.astype(leaf.dtype), tree, rows)
    if _dealt(tree):
        count = jax.tree.leaves(tree)[0].shape[0]
        return scatter(tree, jnp.minimum(nodes, count - 1), rows, nodes < count)
    return jax.tree.map(lambda leaf, new: leaf.at[nodes].set(new, mode="drop"), tree, rows)


def _dealt(tree: PyTree[Array]) -> bool:
    """Whether the devices divide the nodes, and each owns the rows of some."""
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and client_devices(leaves[0].shape[0]) > 1
