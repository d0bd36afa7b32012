"""Weighted sums and means over the client axis."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dflax import validation
from dflax.clients.devices import client_devices, known_to_all, model_devices, platform
from dflax.clients.rows import against
from dflax.programs.exchanges import mean_over, sends, size


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
        weights = known_to_all(jnp.asarray(weights))
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
    coefficients = known_to_all(jnp.asarray(coefficients))
    validation.leading_axis("tree", tree, coefficients.shape[0])

    def total(leaf: Array) -> Array:
        return _sum_of_rows(coefficients.astype(jnp.promote_types(leaf.dtype, jnp.float32)), leaf)

    return jax.tree.map(total, tree)


def _sum_of_rows(factors: Float[Array, " m"], leaf: Float[Array, "m ..."]) -> Float[Array, "..."]:
    # A TPU would copy a leaf to other tiles to make rows of it, and devices that share models would
    # bring them together.
    kept = platform() == "tpu" or model_devices() > 1
    flat = leaf if kept else leaf.reshape(len(leaf), -1)
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
    weights = known_to_all(weights)

    def counted(leaf: Array) -> Array:
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        return jnp.where(against(weights > 0, leaf), leaf, 0).astype(wide)

    means = weighted_mean(jax.tree.map(counted, metrics), weights)
    nobody = jnp.logical_not(jnp.any(weights > 0))
    return jax.tree.map(lambda leaf: jnp.where(nobody, jnp.nan, leaf), means)
