"""Rows of single nodes in stacked state: starts, and writing some."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from dflax import counter, validation
from dflax.algorithm import Params
from dflax.clients import client_devices, replicate, scatter


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


def put(tree: PyTree[Array], nodes: Int[Array, " k"], rows: PyTree[Array]) -> PyTree[Array]:
    """The tree with the rows of several nodes replaced; numbers from n on are dropped."""
    rows = jax.tree.map(lambda leaf, new: new.astype(leaf.dtype), tree, rows)
    leaves = jax.tree.leaves(tree)
    count = len(leaves[0]) if leaves else 1
    if client_devices(count) > 1:
        return scatter(tree, jnp.minimum(nodes, count - 1), rows, nodes < count)
    return jax.tree.map(lambda leaf, new: leaf.at[nodes].set(new, mode="drop"), tree, rows)
