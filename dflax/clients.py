"""The client axis: map over clients, gather and scatter cohorts, reduce over them."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from dflax import validation
from dflax.programs.exchanges import gathered_by, mean_over, sends, size
from dflax.programs.in_place import map_in_place
from dflax.programs.products import contract_last
from dflax.programs.rewriting import traced_once

CLIENTS = "clients"
# On a CPU, clients with fewer elements than the first number run all at once: a step then costs the
# launching of its operations, not the arithmetic in them. Up to the second number, chunks of as many
# clients as the third holds keep all cores busy and the caches warm; beyond, one client after
# another does. Measured in docs/execution.md.
SMALL_CLIENT = 1 << 14
MEDIUM_CLIENT = 1 << 17
CHUNK = 3 << 17


class DealtWithClients(abc.ABC):
    """Shared data of which a device holds its own clients' part; `map_clients` asks it for its layout.

    A class of its own says so. Having a method of that name does not: JAX's own arrays have a `layout`.
    """

    @abc.abstractmethod
    def layout(self, devices: int) -> Any:
        """The `PartitionSpec` of every leaf on so many devices, in a tree like this one."""


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
        all at once. None chooses: all at once on accelerators; on a CPU all for clients of fewer
        than 2^14 elements, chunks of 3 2^17 elements (24 to 3 clients) below 2^17, else one after
        another; docs/execution.md has the measurements.

    Returns:
      What `function` returns, each leaf with the leading axis m.

    Raises:
      ValueError: leading axes that differ, or `at_once` below 1.
    """
    validation.function("function", function)
    count = validation.leading_axis("stacked", stacked)
    validation.at_once(at_once)
    shared = jax.tree.map(jnp.asarray, shared)

    devices = client_devices()
    if devices == 1:
        return _on_one_device(function, at_once, stacked, shared)
    padding = -count % devices
    dealt = jax.shard_map(
        functools.partial(_on_one_device, function, at_once),
        in_specs=(PartitionSpec(CLIENTS), _layout(shared, devices)),
        out_specs=PartitionSpec(CLIENTS),
        axis_names={CLIENTS},
        check_vma=False,
    )
    out = dealt(jax.tree.map(lambda leaf: _repeat_first(leaf, padding), stacked), shared)
    return jax.tree.map(lambda leaf: leaf[:count], out) if padding else out


def map_cohort(
    function: Callable[..., Any],
    tree: PyTree[Array],
    cohort: Int[Array, " m"] | None,
    *stacked: PyTree[Array],
    shared: tuple[PyTree[Array], ...] = (),
    at_once: int | None = None,
) -> Any:
    """`map_clients` on the cohort's rows of per-client state, which come first among the arguments.

        out[i] = function(tree[cohort[i]], *(other[i] for other in stacked), *shared)

    Where clients run one after another on one device, each reads its row where it lies, and the
    cohort's rows are never copied out.

    Args:
      function: works on one client's row of the state, its rows of `stacked`, then on what is shared.
      tree: per-client state, leaves `[n, ...]`.
      cohort: `[m]` client ids in [0, n), or None: all n in order.
      *stacked: as for `map_clients`, leading axis m.
      shared: as there.
      at_once: as there.

    Returns:
      What `function` returns, each leaf with the leading axis m.

    Raises:
      ValueError: as `map_clients`.
    """
    validation.function("function", function)
    validation.at_once(at_once)
    if cohort is None or client_devices() > 1 or not jax.tree.leaves(tree):
        rows = gather(tree, cohort)
        return map_clients(function, rows, *stacked, shared=shared, at_once=at_once)
    width = at_once
    if width is None:
        rows = jax.eval_shape(gather, tree, cohort)
        function, width = _clients_at_once(function, (rows, *stacked), shared)
    if width != 1:
        rows = gather(tree, cohort)
        return map_clients(function, rows, *stacked, shared=shared, at_once=width)

    def reading(member: Array, *others: Any) -> Any:
        *given, tree = others
        own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, member, 0, False), tree)
        return function(own, *given)

    return map_clients(reading, cohort, *stacked, shared=(*shared, tree), at_once=1)


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
    """The same tree for every client: each leaf broadcast to `[n, ...]`, n >= 1."""
    validation.integer("clients", clients, low=1)
    validation.arrays("tree", tree)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (clients, *jnp.shape(leaf))), tree)


def weighted_mean(tree: PyTree[Array], weights: Float[Array, " m"] | None = None) -> PyTree[Array]:
    """Mean over the client axis, `sum_i w_i x_i / sum_i w_i`, as one product per leaf.

    The product `w @ x` runs at memory speed where `x.mean(0)` does not, and needs one all-reduce
    when clients are sharded. It accumulates in float32, or in the leaf's dtype if that is wider; the
    weights are added up in the widest of their dtype, the leaf's and float32.

    Args:
      tree: floating-point leaves `[m, ...]`.
      weights: `[m]`, >= 0; None weighs all clients the same. When all are 0 the result is 0.

    Returns:
      Leaves `[...]` in their own dtype.

    Raises:
      ValueError: leaves whose leading axes differ, weights of another shape or below 0.
      TypeError: an integer leaf, of which there is no mean.
    """
    if weights is not None:
        validation.real("weights", weights, low=0.0)
        if np.ndim(weights) != 1:
            raise ValueError(
                f"weights must be one number per row of tree, [m], got shape {np.shape(weights)}."
            )
        # A few numbers, of which every device then has the total without asking the others.
        weights = _known_to_all(jnp.asarray(weights))
    count = validation.leading_axis("tree", tree, None if weights is None else weights.shape[0])

    def shares(dtype: Any) -> Float[Array, " m"]:
        if weights is None:
            return jnp.full((count,), 1.0 / count, dtype)
        wide = weights.astype(jnp.promote_types(weights.dtype, dtype))
        total = wide.sum()
        return jnp.where(total > 0, wide / jnp.where(total > 0, total, 1), 0).astype(dtype)

    def mean(path: Any, leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"tree{jax.tree_util.keystr(path)} must hold real numbers, got {leaf.dtype}. "
                "Keep counters out of what is averaged."
            )
        # Shares of a third rounded to float32 would spoil a mean of float64.
        return _sum_of_rows(shares(jnp.promote_types(leaf.dtype, jnp.float32)), leaf)

    return jax.tree_util.tree_map_with_path(mean, tree)


def weighted_sum(tree: PyTree[Array], coefficients: Float[Array, " m"]) -> PyTree[Array]:
    """Sum over the client axis, `sum_i c_i x_i` with c of any sign, as one product per leaf.

    Args:
      tree: floating-point leaves `[m, ...]`.
      coefficients: `[m]`.

    Returns:
      Leaves `[...]` in their own dtype, from sums in float32 or wider.

    Raises:
      ValueError: leaves whose leading axes differ from that of the coefficients.
    """
    coefficients = _known_to_all(jnp.asarray(coefficients))
    validation.leading_axis("tree", tree, coefficients.shape[0])

    def total(leaf: Array) -> Array:
        return _sum_of_rows(coefficients.astype(jnp.promote_types(leaf.dtype, jnp.float32)), leaf)

    return jax.tree.map(total, tree)


def _sum_of_rows(factors: Float[Array, " m"], leaf: Float[Array, "m ..."]) -> Float[Array, "..."]:
    # A TPU would copy a leaf to other tiles to make rows of it.
    flat = leaf if platform() == "tpu" else leaf.reshape(len(leaf), -1)
    values, exact = flat.astype(factors.dtype), jax.lax.Precision.HIGHEST
    with sends(lambda: mean_over(client_devices(), size(values) / len(leaf))):
        product = jnp.tensordot(factors, values, axes=1, precision=exact)
    return product.reshape(leaf.shape[1:]).astype(leaf.dtype)


def mean_metrics(metrics: PyTree[Array], weights: Float[Array, " m"]) -> PyTree[Array]:
    """The weighted mean of what clients measured, over those of positive weight.

    Whatever a client of weight 0 holds, a NaN even, does not count. Where all weights are 0 nothing
    was measured, and every mean is NaN: a 0 would be read as a loss or an accuracy of 0.

    Args:
      metrics: leaves `[m, ...]` of real numbers, integers or booleans; a tree without leaves stays.
      weights: `[m]`, >= 0.

    Returns:
      Leaves `[...]`: of floating-point metrics at least float32, of integers and booleans float32.
    """
    if not jax.tree.leaves(metrics):
        return metrics
    weights = _known_to_all(weights)

    def counted(leaf: Array) -> Array:
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        return jnp.where(against(weights > 0, leaf), leaf, 0).astype(wide)

    means = weighted_mean(jax.tree.map(counted, metrics), weights)
    nobody = jnp.logical_not(jnp.any(weights > 0))
    return jax.tree.map(lambda leaf: jnp.where(nobody, jnp.nan, leaf), means)


def select(condition: Array, chosen: PyTree[Array], otherwise: PyTree[Array]) -> PyTree[Array]:
    """Leaf-wise `where` with a scalar condition, or one per client `[m]` against leaves `[m, ...]`.

    Args:
      condition: `[]` or `[m]` booleans.
      chosen: a tree of the structure, the shapes and the dtypes of `otherwise`. Nothing is broadcast,
        and nothing is converted but Python's own numbers.
      otherwise: what is taken where the condition is False.

    Raises:
      TypeError, ValueError: naming the leaf whose structure, shape or dtype differs.
    """

    def choose(path: Any, old: Array, new: Array) -> Array:
        name = f"chosen{jax.tree_util.keystr(path)}"
        new = _like(name, jnp.asarray(new), jnp.shape(old), jnp.result_type(old))
        return jnp.where(against(condition, new), new, old)

    require_structure("chosen", chosen, otherwise)
    return jax.tree_util.tree_map_with_path(choose, otherwise, chosen)


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


def everywhere(tree: PyTree[Array]) -> PyTree[Array]:
    """The tree held whole by every device of the ambient mesh; the tree itself where there is none."""
    with sends(lambda: gathered_by(client_devices(), size(tree))):
        return _known_to_all(tree)


def platform() -> str:
    """What is being compiled for, "cpu", "gpu" or "tpu": every choice by platform asks here.

    The platform of the ambient mesh, which need not be one of this machine (`dflax.mesh.planned`);
    without a mesh that of JAX's default device.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return jax.default_backend() if device is None else device.platform


def is_planned(mesh: Mesh) -> bool:
    """Whether a mesh is of a machine that is not here: nothing can be put there, nor run."""
    return mesh.devices.flat[0].client.runtime_type == "compile_only_runtime"


def client_devices(count: int | None = None) -> int:
    """Over how many devices the ambient mesh deals (`count`) clients; 1 if it does not or cannot."""
    mesh = jax.sharding.get_abstract_mesh()
    if CLIENTS not in mesh.axis_names or _inside_shard_map(mesh):
        return 1
    devices = mesh.shape[CLIENTS]
    return devices if count is None or count % devices == 0 else 1


def _known_to_all(tree: Any) -> Any:
    """`everywhere` for a few numbers, of which devices that know them need send nothing."""
    if client_devices() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), tree)


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

    return _on_owners(give, PartitionSpec(CLIENTS if even else None))(leaf, cohort)


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
    return _on_owners(take, PartitionSpec(CLIENTS))(leaf, cohort, reports, everywhere(rows))


def _places(own: Array, cohort: Int[Array, " m"]) -> tuple[Array, Array]:
    """Where the cohort's rows are among a device's own, and which of them are there at all."""
    place = cohort - jax.lax.axis_index(CLIENTS).astype(cohort.dtype) * own.shape[0]
    return place, (place >= 0) & (place < own.shape[0])


def _on_owners(function: Callable[..., Array], out: PartitionSpec) -> Callable[..., Array]:
    """Runs a function on every device's own rows; its other arguments are replicated."""

    def dealt(leaf: Array, *others: Array) -> Array:
        return jax.shard_map(
            function,
            in_specs=(PartitionSpec(CLIENTS), *(PartitionSpec() for _ in others)),
            out_specs=out,
            axis_names={CLIENTS},
            check_vma=False,
        )(leaf, *others)

    return dealt


def _on_one_device(
    function: Callable[..., Any], at_once: int | None, stacked: Any, shared: Any
) -> Any:
    """All at once, in chunks, or one after another."""
    if at_once is None:
        function, at_once = _clients_at_once(function, stacked, shared)

    def several(stacked: Any, shared: Any) -> Any:
        here = jax.tree.leaves(stacked)[0].shape[0]
        if at_once >= here > 1:
            return jax.vmap(lambda row: function(*row, *shared))(stacked)
        # A chunk of one goes without vmap, so that a client's conditionals stay conditionals.
        alone = min(at_once, here) == 1
        if alone and platform() != "cpu":
            return map_in_place(lambda row: function(*row, *shared), stacked)
        batch = None if alone else at_once
        return jax.lax.map(lambda row: function(*row, *shared), stacked, batch_size=batch)

    return (contract_last(several) if platform() == "cpu" else several)(stacked, shared)


def _layout(shared: Any, devices: int) -> Any:
    """Where what is shared lies: everywhere, except data that say they are dealt with their clients."""

    def is_dealt(node: Any) -> bool:
        return isinstance(node, DealtWithClients)

    return jax.tree.map(
        lambda node: node.layout(devices) if is_dealt(node) else PartitionSpec(),
        shared,
        is_leaf=is_dealt,
    )


def _repeat_first(leaf: Array, padding: int) -> Array:
    if not padding:
        return leaf
    extra = jnp.broadcast_to(leaf[:1], (padding, *leaf.shape[1:]))
    # Put together on every device and then dealt: an axis that the devices do not divide would
    # else be cut up and sent around piece by piece.
    return everywhere(jnp.concatenate([leaf, extra]))


def _inside_shard_map(mesh: Any) -> bool:
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return kinds[CLIENTS] == jax.sharding.AxisType.Manual


def _row(stacked: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked)


def _clients_at_once(
    function: Callable[..., Any], stacked: Any, shared: Any
) -> tuple[Callable[..., Any], int]:
    """The function, traced where its results had to be seen, and how many clients it gets together.

    All for small clients and on accelerators, else one; sizes are of what goes in and comes out.
    """
    leaves = jax.tree.leaves(stacked)
    count = leaves[0].shape[0]
    if platform() != "cpu":
        return function, count
    into = sum(leaf.size for leaf in leaves) // count
    traced, results = traced_once(function, *_row(stacked), *shared)
    return traced, _width(count, max(into, sum(leaf.size for leaf in jax.tree.leaves(results))))


def _width(count: int, size: int) -> int:
    if size < SMALL_CLIENT:
        return count
    if size >= MEDIUM_CLIENT:
        return 1
    # Chunks that divide the clients spare the program a second copy of itself for the remainder.
    widest = CHUNK // size
    even = max(width for width in range(1, widest + 1) if count % width == 0)
    return even if 2 * even >= widest else widest
