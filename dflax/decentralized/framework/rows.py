"""Rows of single nodes in stacked state: starts, reading one, writing one in place."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Int, Key, PyTree

from dflax import counter, validation
from dflax.algorithm import Params
from dflax.clients import replicate


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
    """The row of one node: leaves `[n, ...]` to `[...]`."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, node, keepdims=False), tree)


def write(tree: PyTree[Array], node: Int[Array, ""], row: PyTree[Array]) -> PyTree[Array]:
    """The tree with the row of one node replaced; inside a compiled loop this happens in place.

    It does where nothing reads the old tree after the first write: read all rows beforehand, and pass
    them through a `jax.lax.cond`, which keeps the compiler from reading them again later.
    """
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_index_in_dim(
            leaf, new.astype(leaf.dtype), node, 0
        ),
        tree,
        row,
    )


def put(tree: PyTree[Array], nodes: Int[Array, " k"], rows: PyTree[Array]) -> PyTree[Array]:
    """The tree with the rows of several nodes replaced; numbers from n on are dropped."""
    return jax.tree.map(
        lambda leaf, new: leaf.at[nodes].set(new.astype(leaf.dtype), mode="drop"), tree, rows
    )
