"""The client axis: map over clients, gather and scatter cohorts, reduce over them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from dflax import validation

CLIENTS = "clients"
# Below this many elements per client, one vectorised program beats a loop over clients on a CPU:
# the cost of a step is then that of launching its operations, not of the arithmetic in them.
SMALL_CLIENT = 1 << 14


def map_clients(
    function: Callable[..., Any],
    *stacked: PyTree[Array],
    shared: tuple[PyTree[Array], ...] = (),
    at_once: int | None = None,
) -> Any:
    """Apply a function to every client: `out[i] = function(*(tree[i] for tree in stacked), *shared)`.

    Under a mesh with the axis "clients" (`with jax.set_mesh(mesh)`, or `run(..., mesh=mesh)`) the
    clients are dealt over its devices, and nothing is exchanged between them. Within a device they
    run all at once (`vmap`), in chunks, or one after another.

    Args:
      function: works on one client's rows, then on what is shared.
      *stacked: pytrees whose leaves share the leading axis m.
      shared: pytrees that every client reads whole (the server's model, the data set); replicated
        over devices. Pass arrays here rather than close over them: under a mesh, what is closed over
        is laid out for all devices together and cannot be copied or differentiated within one.
      at_once: clients that one device computes at the same time: 1 is one after another, m or more
        all at once. None chooses: everything at once on accelerators and for clients of fewer than
        2^14 elements; else one after another, which keeps a CPU's caches warm.

    Returns:
      What `function` returns, each leaf with the leading axis m.

    Raises:
      ValueError: leading axes that differ, or `at_once` below 1.
    """
    count = validation.leading_axis("stacked", stacked)
    if at_once is not None:
        validation.integer("at_once", at_once, low=1)
    shared = jax.tree.map(jnp.asarray, shared)

    def several(stacked: Any, shared: Any) -> Any:
        def one(row: Any) -> Any:
            return function(*row, *shared)

        here = jax.tree.leaves(stacked)[0].shape[0]
        width = _clients_at_once(one, stacked) if at_once is None else at_once
        if width >= here:
            return jax.vmap(one)(stacked)
        # A chunk of one goes without vmap, so that a client's conditionals stay conditionals.
        return jax.lax.map(one, stacked, batch_size=None if width == 1 else width)

    mesh = jax.sharding.get_abstract_mesh()
    if CLIENTS not in mesh.axis_names or mesh.shape[CLIENTS] == 1 or _inside_shard_map(mesh):
        return several(stacked, shared)
    padding = -count % mesh.shape[CLIENTS]
    dealt = jax.shard_map(
        several,
        in_specs=(PartitionSpec(CLIENTS), PartitionSpec()),
        out_specs=PartitionSpec(CLIENTS),
        axis_names={CLIENTS},
        check_vma=False,
    )
    out = dealt(jax.tree.map(lambda leaf: _repeat_first(leaf, padding), stacked), shared)
    return jax.tree.map(lambda leaf: leaf[:count], out) if padding else out


def gather(tree: PyTree[Array], cohort: Int[Array, " m"] | None) -> PyTree[Array]:
    """The cohort's rows of per-client state: `[n, ...]` to `[m, ...]`; all rows when it is None."""
    if cohort is None:
        return tree
    return jax.tree.map(lambda leaf: leaf[cohort], tree)


def scatter(
    tree: PyTree[Array],
    cohort: Int[Array, " m"] | None,
    rows: PyTree[Array],
    reported: Array | None = None,
) -> PyTree[Array]:
    """Write the cohort's new rows into per-client state; every other row stays as it is, bit for bit.

    Args:
      tree: leaves `[n, ...]`.
      cohort: `[m]` distinct client ids; None when the rows are all n clients' in order.
      rows: leaves `[m, ...]`.
      reported: `[m]`; members with 0 here keep their old row. None: all are written.

    Returns:
      Leaves `[n, ...]`.
    """

    def write(leaf: Array, new: Array) -> Array:
        new = new.astype(leaf.dtype)
        if reported is not None:
            old = leaf if cohort is None else leaf[cohort]
            new = jnp.where(_against(reported > 0, new), new, old)
        return new if cohort is None else leaf.at[cohort].set(new, unique_indices=True)

    return jax.tree.map(write, tree, rows)


def replicate(tree: PyTree[Array], clients: int) -> PyTree[Array]:
    """The same tree for every client: each leaf broadcast to `[n, ...]`."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (clients, *jnp.shape(leaf))), tree)


def weighted_mean(tree: PyTree[Array], weights: Float[Array, " m"] | None = None) -> PyTree[Array]:
    """Mean over the client axis, `sum_i w_i x_i / sum_i w_i`, as one product per leaf.

    The product `w @ x` runs at memory speed where `x.mean(0)` does not, and needs one all-reduce
    when clients are sharded. It accumulates in float32.

    Args:
      tree: floating-point leaves `[m, ...]`.
      weights: `[m]`, >= 0; None weighs all clients the same. When all are 0 the result is 0.

    Returns:
      Leaves `[...]` in their own dtype.

    Raises:
      ValueError: leaves whose leading axes differ.
      TypeError: an integer leaf, of which there is no mean.
    """
    count = validation.leading_axis("tree", tree, None if weights is None else weights.shape[0])
    if weights is None:
        share = jnp.full((count,), 1.0 / count, jnp.float32)
    else:
        weights = weights.astype(jnp.float32)
        total = weights.sum()
        share = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), 0.0)

    def mean(path: Any, leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"tree{jax.tree_util.keystr(path)} must hold real numbers, got {leaf.dtype}. "
                "Keep counters out of what is averaged."
            )
        product = jnp.matmul(
            share.astype(jnp.promote_types(leaf.dtype, jnp.float32)),
            leaf.reshape(count, -1),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.promote_types(leaf.dtype, jnp.float32),
        )
        return product.reshape(leaf.shape[1:]).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(mean, tree)


def select(condition: Array, chosen: PyTree[Array], otherwise: PyTree[Array]) -> PyTree[Array]:
    """Leaf-wise `where` with a scalar condition, or one per client `[m]` against leaves `[m, ...]`."""
    return jax.tree.map(
        lambda new, old: jnp.where(_against(condition, new), new, old), chosen, otherwise
    )


def _against(mask: Array, leaf: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))


def _repeat_first(leaf: Array, padding: int) -> Array:
    if not padding:
        return leaf
    extra = jnp.broadcast_to(leaf[:1], (padding, *leaf.shape[1:]))
    return jnp.concatenate([leaf, extra])


def _inside_shard_map(mesh: Any) -> bool:
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return kinds[CLIENTS] == jax.sharding.AxisType.Manual


def _row(stacked: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked)


def _clients_at_once(one: Callable[[Any], Any], stacked: Any) -> int:
    """All for small clients and on accelerators, else one; sizes are of what goes in and comes out."""
    leaves = jax.tree.leaves(stacked)
    count = leaves[0].shape[0]
    if jax.default_backend() != "cpu":
        return count
    into = sum(leaf.size for leaf in leaves) // count
    out_of = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(one, _row(stacked))))
    return count if max(into, out_of) < SMALL_CLIENT else 1
