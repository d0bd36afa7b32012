"""Rules that need all clients' values at once, without bringing all models to every device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from dflax import validation
from dflax.clients import CLIENTS, client_devices


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
        among the leaves.
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
        return _unravel(rule(_ravel(stacked), *shared), stacked)

    def on_one_device(stacked: Any, shared: Any) -> Any:
        result = rule(_by_coordinates(_ravel(stacked))[:count], *shared)
        whole = jax.lax.all_gather(result, CLIENTS, tiled=True)
        return _unravel(whole, stacked)

    return _dealt(on_one_device)(_filled_up(stacked), shared)


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
    count = _require_models(stacked)
    if client_devices() == 1:
        return _products(_ravel(stacked))

    def on_one_device(stacked: Any, shared: tuple[()]) -> Array:
        values = _by_coordinates(_ravel(stacked))[:count]
        return jax.lax.psum(_products(values), CLIENTS)

    return _dealt(on_one_device)(_filled_up(stacked), ())


def _dealt(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs on every device with its own clients; the second argument and the result are replicated."""
    return jax.shard_map(
        function,
        in_specs=(PartitionSpec(CLIENTS), PartitionSpec()),
        out_specs=PartitionSpec(),
        axis_names={CLIENTS},
        check_vma=False,
    )


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


def _products(values: Float[Array, "m c"]) -> Float[Array, "m m"]:
    return jnp.matmul(values, values.T, precision=jax.lax.Precision.HIGHEST)


def _ravel(stacked: PyTree[Array]) -> Float[Array, "m d"]:
    leaves = jax.tree.leaves(stacked)
    wide = jnp.result_type(jnp.float32, *leaves)
    flat = [leaf.reshape(leaf.shape[0], -1).astype(wide) for leaf in leaves]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=1)


def _unravel(vector: Float[Array, " d"], stacked: PyTree[Array]) -> PyTree[Array]:
    leaves, structure = jax.tree.flatten(stacked)
    parts, start = [], 0
    for leaf in leaves:
        width = leaf.size // leaf.shape[0]
        parts.append(vector[start : start + width].reshape(leaf.shape[1:]).astype(leaf.dtype))
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
