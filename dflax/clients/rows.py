"""Rows of per-client state: gathered, scattered, chosen."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, PyTree

from dflax import validation
from dflax.clients.devices import CLIENTS, client_devices, everywhere, on_owners


def gather(tree: PyTree[Array], cohort: Int[Array, " m"] | None) -> PyTree[Array]:
    """The cohort's rows of per-client state: `[n, ...]` to `[m, ...]`; all rows when it is None.

    Where n clients are dealt over devices, each device gives the rows that it owns, and zeros for the
    others. A sum over devices deals the rows again. What travels has the size of the cohort, never
    that of the population.

    Args:
      tree: leaves `[n, ...]`.
      cohort: `[m]` client ids in [0, n), or None.

    Returns:
      Leaves `[m, ...]`.

    Raises:
      TypeError: ids that are no integers, a mask for example.
      ValueError: ids that are no vector, or lie beyond the rows; leaves whose leading axes differ.

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> state = {"x": jnp.array([10.0, 20.0, 30.0, 40.0])}
      >>> dx.gather(state, jnp.array([3, 1]))["x"].tolist()
      [40.0, 20.0]
    """
    if cohort is None:
        return tree
    cohort = jnp.asarray(cohort)
    _require_members(tree, cohort)
    return jax.tree.map(lambda leaf: _gather_rows(leaf, cohort), tree)


def scatter(
    tree: PyTree[Array],
    cohort: Int[Array, " m"] | None,
    rows: PyTree[Array],
    reported: Array | None = None,
) -> PyTree[Array]:
    """Write the cohort's new rows into per-client state; every other row stays as it is, bit for bit.

    Where n clients are dealt over devices, the cohort's rows go to every device, which writes those
    that it owns.

    Args:
      tree: leaves `[n, ...]`.
      cohort: `[m]` distinct client ids; None when the rows are all n clients' in order.
      rows: leaves `[m, ...]`, of the structure, the trailing shapes and the dtypes of `tree`. Nothing
        is broadcast, and nothing is converted but Python's own numbers.
      reported: `[m]`; members with 0 here keep their old row. None: all are written.

    Returns:
      Leaves `[n, ...]`.

    Raises:
      TypeError, ValueError: naming the leaf whose structure, shape or dtype differs; ids as `gather`.

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> state, cohort = jnp.array([10.0, 20.0, 30.0]), jnp.array([2, 0])
      >>> dx.scatter(state, cohort, jnp.array([1.0, 2.0]), reported=jnp.array([True, False])).tolist()
      [10.0, 20.0, 1.0]
    """
    if cohort is not None:
        cohort = jnp.asarray(cohort)
        _require_members(tree, cohort)
    length = None if cohort is None else cohort.shape[0]

    def write(path: Any, leaf: Array, new: Array) -> Array:
        name = f"rows{jax.tree_util.keystr(path)}"
        wanted = leaf.shape if length is None else (length, *leaf.shape[1:])
        new = _like(name, jnp.asarray(new), wanted, leaf.dtype)
        if cohort is not None:
            return _scatter_rows(leaf, cohort, new, reported)
        return new if reported is None else jnp.where(against(reported > 0, new), new, leaf)

    require_structure("rows", rows, tree)
    return jax.tree_util.tree_map_with_path(write, tree, rows)


def replicate(tree: PyTree[Array], clients: int) -> PyTree[Array]:
    """The same tree for every client: each leaf broadcast to `[n, ...]`, n >= 1.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> models = dx.replicate({"w": jnp.zeros((2, 5)), "b": jnp.zeros(5)}, 4)
      >>> jax.tree.map(jnp.shape, models)
      {'b': (4, 5), 'w': (4, 2, 5)}
    """
    validation.integer("clients", clients, low=1)
    validation.arrays("tree", tree)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (clients, *jnp.shape(leaf))), tree)


def select(condition: Array, chosen: PyTree[Array], otherwise: PyTree[Array]) -> PyTree[Array]:
    """Leaf-wise `where` with a scalar condition, or one per client `[m]` against leaves `[m, ...]`.

    Args:
      condition: `[]` or `[m]` booleans.
      chosen: a tree of the structure, the shapes and the dtypes of `otherwise`. Nothing is broadcast,
        and nothing is converted but Python's own numbers.
      otherwise: what is taken where the condition is False.

    Raises:
      TypeError, ValueError: naming the leaf whose structure, shape or dtype differs.

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> new, old = jnp.ones((3, 2)), jnp.zeros((3, 2))
      >>> dx.select(jnp.array([True, False, True]), new, old).tolist()
      [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    """

    def choose(path: Any, old: Array, new: Array) -> Array:
        name = f"chosen{jax.tree_util.keystr(path)}"
        new = _like(name, jnp.asarray(new), jnp.shape(old), jnp.result_type(old))
        return jnp.where(against(condition, new), new, old)

    require_structure("chosen", chosen, otherwise)
    return jax.tree_util.tree_map_with_path(choose, otherwise, chosen)


def against(rows: Array, leaf: Array) -> Array:
    """One entry per client, `[m]` or a scalar, with axes of length 1 so that it meets `[m, ...]`.

    Raises:
      ValueError: a leaf without these leading axes, which would be broadcast instead.
    """
    if leaf.shape[: rows.ndim] != rows.shape:
        raise ValueError(
            f"a leaf must have the leading axes {rows.shape} of what stands for its clients, got "
            f"shape {leaf.shape}."
        )
    return rows.reshape(rows.shape + (1,) * (leaf.ndim - rows.ndim))


def require_structure(name: str, tree: Any, like: Any) -> None:
    """Refuse a tree of another structure than that of the tree that it takes the place of.

    Raises:
      ValueError: naming the leaves that only one of the two has, where there are any.
    """
    given: Any = jax.tree.structure(tree)
    wanted: Any = jax.tree.structure(like)
    if given == wanted:
        return

    def names(tree: Any) -> set[str]:
        return {
            jax.tree_util.keystr(p) or "(the tree)"
            for p, _ in jax.tree_util.tree_leaves_with_path(tree)
        }

    missing, extra = sorted(names(like) - names(tree)), sorted(names(tree) - names(like))
    leaves = f" (missing {missing}, not known {extra})" if missing or extra else ""
    raise ValueError(
        f"{name} must have the structure of what it takes the place of, {wanted}, got {given}{leaves}."
    )


def _like(name: str, new: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """The array, of the shape and dtype that are wanted; only Python's numbers are converted."""
    if new.shape != shape:
        raise ValueError(
            f"{name} must have shape {shape}, that of the state it takes the place of, got "
            f"{new.shape}. Nothing is broadcast."
        )
    if new.dtype == dtype:
        return new
    if getattr(new, "weak_type", False) and jnp.result_type(new, dtype) == dtype:
        return new.astype(dtype)
    raise TypeError(
        f"{name} must have dtype {dtype}, that of the state it takes the place of, got {new.dtype}. "
        "Start the state in the dtype that a round makes, or convert what the round makes."
    )


def _require_members(tree: PyTree[Array], cohort: Array) -> None:
    """Refuse ids that are no vector of integers, or that lie beyond the rows of the tree if known."""
    if not jnp.issubdtype(cohort.dtype, jnp.integer):
        raise TypeError(
            f"cohort must hold the clients' numbers, got {cohort.dtype}. Of a mask take "
            "jnp.flatnonzero(mask)."
        )
    if cohort.ndim != 1:
        raise ValueError(f"cohort must be a vector of clients' numbers, got shape {cohort.shape}.")
    if not jax.tree.leaves(tree):
        return
    clients = validation.leading_axis("tree", tree)
    if validation.is_traced(cohort) or not cohort.size:
        return
    # On the host: within a trace even an operation on known numbers is traced.
    known = np.asarray(cohort)
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= clients:
        raise ValueError(
            f"cohort must hold clients' numbers in [0, {clients}), the rows of tree, got {low} to "
            f"{high}."
        )


def _gather_rows(leaf: Array, cohort: Int[Array, " m"]) -> Array:
    devices = client_devices(leaf.shape[0])
    if devices == 1:
        return leaf[cohort]
    # Neither keys nor booleans can be added up.
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        rows = _gather_rows(jax.random.key_data(leaf), cohort)
        return jax.random.wrap_key_data(rows, impl=jax.random.key_impl(leaf))
    if leaf.dtype == bool:
        return _gather_rows(leaf.astype(jnp.uint8), cohort).astype(bool)
    even = cohort.shape[0] % devices == 0

    def give(own: Array, cohort: Array) -> Array:
        place, mine = _places(own, cohort)
        rows = own[jnp.where(mine, place, 0)]
        rows = jnp.where(against(mine, rows), rows, 0)
        if not even:
            return jax.lax.psum(rows, CLIENTS)
        return jax.lax.psum_scatter(rows, CLIENTS, scatter_dimension=0, tiled=True)

    return on_owners(give, PartitionSpec(CLIENTS if even else None))(leaf, cohort)


def _scatter_rows(
    leaf: Array, cohort: Int[Array, " m"], rows: Array, reported: Array | None
) -> Array:
    members = jnp.arange(cohort.shape[0], dtype=cohort.dtype)

    def write(own: Array, place: Array, writes: Array, rows: Array) -> Array:
        # Rows not to be written get places behind the end, all different, and are dropped.
        place = jnp.where(writes, place, own.shape[0] + members)
        return own.at[place].set(rows, mode="drop", unique_indices=True)

    def take(own: Array, cohort: Array, reports: Array, rows: Array) -> Array:
        place, mine = _places(own, cohort)
        return write(own, place, mine & reports, rows)

    reports = jnp.ones(cohort.shape, bool) if reported is None else reported > 0
    if client_devices(leaf.shape[0]) == 1:
        return write(leaf, cohort, reports, rows)
    return on_owners(take, PartitionSpec(CLIENTS))(leaf, cohort, reports, everywhere(rows))


def _places(own: Array, cohort: Int[Array, " m"]) -> tuple[Array, Array]:
    """Where the cohort's rows are among a device's own, and which of them are there at all."""
    place = cohort - jax.lax.axis_index(CLIENTS).astype(cohort.dtype) * own.shape[0]
    return place, (place >= 0) & (place < own.shape[0])
