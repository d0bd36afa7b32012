"""Rules that need all clients' values at once, without bringing all models to every device."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from dflax import validation
from dflax.aggregation.rows.products import products
from dflax.clients import CLIENTS, MODEL, client_devices, model_devices, shared_axis


def map_coordinates(
    rule: Callable[..., Float[Array, " c"]],
    stacked: PyTree[Array],
    *shared: PyTree[Array],
) -> PyTree[Array]:
    """Applies a coordinate-wise rule: `out[j] = rule(x[:, j])` for every parameter j of the models.

    Where m clients are dealt over p devices, the models are dealt over them again by coordinates (one
    all-to-all, in which a device sends its own rows once), each device applies the rule to its d / p
    coordinates, and the result is collected (one all-gather of a model).

    Args:
      rule: `(values, *shared) -> [c]` on values `[m, c]` of any c coordinates, each column for itself,
        for example `lambda values: jnp.median(values, 0)`. Values are float32, or of the widest dtype
        among the leaves. It is called a few times: large leaves are not copied together.
      stacked: floating-point leaves `[m, ...]`.
      *shared: pytrees that the rule reads whole, such as the clients' weights `[m]`.

    Returns:
      Leaves `[...]` in their own dtype.

    Raises:
      TypeError: a rule that is no function, or a leaf that does not hold real numbers.
      ValueError: leaves whose leading axes differ.
    """
    validation.function("rule", rule)
    count = _require_models(stacked)
    if client_devices() == 1:
        groups = _groups(stacked)
        found = [rule(_ravel(stacked, group), *shared) for group in groups]
        return _unravel(found, groups, stacked)

    def on_one_device(stacked: Any, shared: Any) -> Any:
        result = rule(_by_coordinates(_ravel(stacked))[:count], *shared)
        # As rows, which the barriers keep: a TPU gathers a vector whose shares are no whole tiles by an
        # all-reduce, at twice the price.
        own = jax.lax.optimization_barrier(result[None, None])
        rows = jax.lax.all_gather(own, CLIENTS, tiled=True)
        whole = jax.lax.optimization_barrier(rows).reshape(-1)
        return _unravel([whole], [list(range(len(jax.tree.leaves(stacked))))], stacked)

    return _dealt(on_one_device, stacked, _parts(stacked))(_filled_up(stacked), shared)


def sum_coordinates(
    function: Callable[..., Array], stacked: PyTree[Array], *shared: PyTree[Array]
) -> Array:
    """Adds up over all parameters what a function makes of them: `sum_j function(x[:, j])`.

    Where m clients are dealt over devices, the models are dealt over them again by coordinates (an
    all-to-all of each large leaf and one of all others) and the devices' shares are added up (one
    all-reduce of what the function returns).

    Args:
      function: `(values, *shared) -> [...]` on values `[m, c]` of any c coordinates, additive over
        the coordinates and 0 where all values are 0, for example `lambda values: values @ values.T`.
        Values are float32, or of the widest dtype among the leaves.
      stacked: floating-point leaves `[m, ...]`.
      *shared: pytrees that the function reads whole.

    Returns:
      What the function returns.

    Raises:
      TypeError: a function that is none, or a leaf that does not hold real numbers.
      ValueError: leaves whose leading axes differ.
    """
    validation.function("function", function)
    count = _require_models(stacked)
    if client_devices() == 1:
        parts = [function(_ravel(stacked, group), *shared) for group in _groups(stacked)]
        return functools.reduce(jnp.add, parts)

    everywhere = [MODEL not in part for part in jax.tree.leaves(_parts(stacked))]

    def on_one_device(stacked: Any, shared: Any) -> Array:
        stacked = _counted_once(stacked, everywhere) if model_devices() > 1 else stacked
        parts = [function(_of_group(stacked, group)[:count], *shared) for group in _groups(stacked)]
        return jax.lax.psum(functools.reduce(jnp.add, parts), _axes())

    return _dealt(on_one_device, stacked, PartitionSpec())(_filled_up(stacked), shared)


def gram(stacked: PyTree[Array]) -> Float[Array, "m m"]:
    """The Gram matrix `G_ij = <x_i, x_j>` of m models, all parameters together.

    Every rule that looks at distances alone can be computed from it:
    `|x_i - x_j|^2 = G_ii + G_jj - 2 G_ij`, and linear combinations of the models have their products
    in it as well. Where clients are dealt over devices, the models are dealt over them again by
    coordinates (one all-to-all) and the devices' shares are added up (one all-reduce of m^2 numbers).

    Args:
      stacked: floating-point leaves `[m, ...]`; subtract a common centre first where the models are
        close to each other and far from 0, since the products lose digits as `|x|^2 / |x_i - x_j|^2`.

    Returns:
      `[m, m]`, accumulated in float32 or in the widest dtype among the leaves.

    Raises:
      TypeError: a leaf that does not hold real numbers.
      ValueError: leaves whose leading axes differ.
    """
    return sum_coordinates(products, stacked)


def mix_rows(mixing: Float[Array, "r m"], stacked: PyTree[Array]) -> PyTree[Array]:
    """Combinations of m models, one for each row of a matrix: `out_a = sum_i mixing_ai x_i`.

    Where m clients are dealt over devices, the models are dealt over them again by coordinates, each
    device mixes its own, and the results are dealt by rows (two all-to-alls).

    Args:
      mixing: `[r, m]`.
      stacked: floating-point leaves `[m, ...]`.

    Returns:
      Leaves `[r, ...]` in their own dtype, from sums in float32 or wider.

    Raises:
      TypeError: a leaf that does not hold real numbers.
      ValueError: leaves whose leading axes differ.
    """
    count = _require_models(stacked)
    rows, devices = len(mixing), client_devices()

    def mixed(values: Float[Array, "m c"], mixing: Float[Array, "r m"]) -> Float[Array, "r c"]:
        exact = jax.lax.Precision.HIGHEST
        return jnp.matmul(mixing.astype(values.dtype), values, precision=exact)

    def leaf_of(leaf: Array) -> Array:
        wide = leaf.reshape(count, -1).astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return mixed(wide, mixing).reshape(rows, *leaf.shape[1:]).astype(leaf.dtype)

    if devices == 1:
        return jax.tree.map(leaf_of, stacked)

    def on_one_device(stacked: Any, mixing: Array) -> Any:
        found = mixed(_by_coordinates(_ravel(stacked))[:count], mixing)
        filled = jnp.pad(found, ((0, -rows % devices), (0, 0)))
        own = jax.lax.all_to_all(filled, CLIENTS, split_axis=0, concat_axis=1, tiled=True)
        groups = [list(range(len(jax.tree.leaves(stacked))))]
        return jax.vmap(lambda row: _unravel([row], groups, stacked))(own)

    found = _dealt(on_one_device, stacked, _parts(stacked, CLIENTS))
    out = found(_filled_up(stacked), mixing)
    return jax.tree.map(lambda leaf: leaf[:rows], out)


def _dealt(function: Callable[..., Any], stacked: PyTree[Array], out: Any) -> Callable[..., Any]:
    """Runs on every device with its part of the models; the second argument is replicated."""
    return jax.shard_map(
        function,
        in_specs=(_parts(stacked, CLIENTS), PartitionSpec()),
        out_specs=out,
        axis_names=set(_axes()),
        check_vma=False,
    )


def _axes() -> tuple[str, ...]:
    return (CLIENTS, MODEL) if model_devices() > 1 else (CLIENTS,)


def _parts(stacked: PyTree[Array], *lead: str) -> PyTree[PartitionSpec]:
    """How models `[m, ...]` are split over devices that share them, behind the axes that lead."""
    sharing = model_devices()

    def part(leaf: Array) -> PartitionSpec:
        shared = shared_axis(leaf.shape[1:], sharing)
        others = (MODEL if axis == shared else None for axis in range(leaf.ndim - 1))
        return PartitionSpec(*lead, *others)

    return jax.tree.map(part, stacked)


def _counted_once(stacked: PyTree[Array], everywhere: list[bool]) -> PyTree[Array]:
    """Zeros in the place of leaves that all devices of a model have, but on the first of them."""
    first = jax.lax.axis_index(MODEL) == 0
    leaves, structure = jax.tree.flatten(stacked)
    kept = [
        jnp.where(first, leaf, 0) if whole else leaf
        for leaf, whole in zip(leaves, everywhere, strict=True)
    ]
    return jax.tree.unflatten(structure, kept)


def _filled_up(stacked: PyTree[Array]) -> PyTree[Array]:
    """With rows of zeros at the end, so that every device has the same number of clients."""

    def fill(leaf: Array) -> Array:
        missing = -leaf.shape[0] % client_devices()
        return jnp.pad(leaf, ((0, missing), *((0, 0) for _ in leaf.shape[1:])))

    return jax.tree.map(fill, stacked)


def _by_coordinates(rows: Float[Array, "own d"]) -> Float[Array, "m share"]:
    """All clients' values of this device's share of the coordinates; zeros fill up the last share."""
    devices = jax.lax.axis_size(CLIENTS)
    padded = jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % devices)))
    return jax.lax.all_to_all(padded, CLIENTS, split_axis=1, concat_axis=0, tiled=True)


def _of_group(stacked: PyTree[Array], group: list[int]) -> Float[Array, "m share"]:
    """`_by_coordinates` in any order; a leaf that stands alone is cut where it need not be copied."""
    leaf, devices = jax.tree.leaves(stacked)[group[0]], jax.lax.axis_size(CLIENTS)
    axis = axis_to_deal(leaf.shape, devices)
    if len(group) > 1 or axis is None:
        return _by_coordinates(_ravel(stacked, group))
    wide = leaf.astype(jnp.result_type(jnp.float32, *jax.tree.leaves(stacked)))
    values = jax.lax.all_to_all(wide, CLIENTS, split_axis=axis, concat_axis=0, tiled=True)
    return values.reshape(len(values), -1)


def axis_to_deal(shape: tuple[int, ...], devices: int) -> int | None:
    """The axis behind the clients' to be cut: the last that the devices divide into whole tiles."""
    axes = [axis for axis in range(1, len(shape)) if shape[axis] and not shape[axis] % devices]
    tiles = {len(shape) - 1: 128, len(shape) - 2: 8}
    whole = [axis for axis in axes if not shape[axis] // devices % tiles.get(axis, 1)]
    return (whole or axes)[-1] if axes else None


def _groups(stacked: PyTree[Array]) -> list[list[int]]:
    """Numbers of the leaves that are worked on together.

    Leaves that hold an eighth or more of all parameters stand alone, so that they need not be copied;
    the others are put together, so that no rule is compiled for more than nine matrices.
    """
    sizes = [leaf.size for leaf in jax.tree.leaves(stacked)]
    alone = [8 * size >= sum(sizes) for size in sizes]
    large = [[number] for number in range(len(sizes)) if alone[number]]
    small = [number for number in range(len(sizes)) if not alone[number]]
    return [*large, small] if small else large


def _ravel(stacked: PyTree[Array], group: list[int] | None = None) -> Float[Array, "m d"]:
    """The leaves of a group side by side, those of all by default."""
    leaves = jax.tree.leaves(stacked)
    wide = jnp.result_type(jnp.float32, *leaves)
    chosen = leaves if group is None else [leaves[number] for number in group]
    flat = [leaf.reshape(leaf.shape[0], -1).astype(wide) for leaf in chosen]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=1)


def _unravel(
    vectors: list[Float[Array, " c"]], groups: list[list[int]], stacked: PyTree[Array]
) -> PyTree[Array]:
    leaves, structure = jax.tree.flatten(stacked)
    parts = list(leaves)
    for vector, group in zip(vectors, groups, strict=True):
        start = 0
        for number in group:
            leaf = leaves[number]
            width = leaf.size // leaf.shape[0]
            values = vector[start : start + width]
            parts[number] = values.reshape(leaf.shape[1:]).astype(leaf.dtype)
            start += width
    return jax.tree.unflatten(structure, parts)


def _require_models(stacked: PyTree[Array]) -> int:
    for path, leaf in jax.tree_util.tree_leaves_with_path(stacked):
        dtype = jax.dtypes.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"stacked{jax.tree_util.keystr(path)} must hold real numbers, got {dtype}. Keep "
                "counters and keys out of what is aggregated."
            )
    return validation.leading_axis("stacked", stacked)
