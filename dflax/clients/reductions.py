"""Weighted sums and means over the client axis."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, PyTree

from dflax import validation
from dflax.clients.devices import CLIENTS, client_devices, known_to_all, model_devices, platform
from dflax.clients.rows import against, select
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

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> models = {"w": jnp.array([[1.0, 2.0], [3.0, 6.0]])}
      >>> dx.weighted_mean(models, jnp.array([3.0, 1.0]))["w"].tolist()
      [1.5, 3.0]
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

    def mean(leaf: Array) -> Array:
        # Shares of a third rounded to float32 would spoil a mean of float64.
        dtype = jnp.promote_types(leaf.dtype, jnp.float32)
        return _sum_of_rows(shares(weights, count, dtype), leaf).astype(leaf.dtype)

    require_real(tree)
    return jax.tree.map(mean, tree)


def require_real(tree: PyTree[Array]) -> None:
    """Refuse a leaf of other than real numbers, of which there is no mean."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"tree{jax.tree_util.keystr(path)} must hold real numbers, got {leaf.dtype}. "
                "Keep counters out of what is averaged."
            )


def shares(
    weights: Float[Array, " m"] | None, count: int, dtype: Any = jnp.float32
) -> Float[Array, " m"]:
    """`w_i / sum_i w_i`, or 1 / m of no weights; 0 when all are 0. Added up in the wider dtype."""
    if weights is None:
        return jnp.full((count,), 1.0 / count, dtype)
    wide = weights.astype(jnp.promote_types(weights.dtype, dtype))
    total = wide.sum()
    return jnp.where(total > 0, wide / jnp.where(total > 0, total, 1), 0).astype(dtype)


def weighted_sum(
    tree: PyTree[Array],
    coefficients: Float[Array, " m"],
    present: Bool[Array, " m"] | None = None,
) -> PyTree[Array]:
    """Sum over the client axis, `sum_i c_i x_i` with c of any sign, as one product per leaf.

    Args:
      tree: floating-point leaves `[m, ...]`.
      coefficients: `[m]`.
      present: `[m]`, who counts: the others, of coefficient 0, may hold anything, NaNs too. Only where
        one of them holds a NaN or an infinity its device reads and copies its rows a second time;
        nothing more is sent. None: all count.

    Returns:
      Leaves `[...]` in their own dtype, from sums in float32 or wider.

    Raises:
      ValueError: leaves whose leading axes differ from that of the coefficients.
    """
    coefficients = known_to_all(jnp.asarray(coefficients))
    count = validation.leading_axis("tree", tree, coefficients.shape[0])

    def total(tree: PyTree[Array], coefficients: Array) -> PyTree[Array]:
        def of(leaf: Array) -> Array:
            factors = coefficients.astype(jnp.promote_types(leaf.dtype, jnp.float32))
            return _sum_of_rows(factors, leaf)

        return jax.tree.map(of, tree)

    if present is None:
        sums = total(tree, coefficients)
    elif client_devices(count) == 1:
        sums = _of_the_present(total, tree, coefficients, present)
    else:

        def own(*given: Any) -> PyTree[Array]:
            return jax.lax.psum(_of_the_present(total, *given), CLIENTS)

        sums = jax.shard_map(
            own,
            in_specs=PartitionSpec(CLIENTS),
            out_specs=PartitionSpec(),
            axis_names={CLIENTS},
            check_vma=False,
        )(tree, coefficients, known_to_all(present))
    return jax.tree.map(lambda sums, leaf: sums.astype(leaf.dtype), sums, tree)


def _of_the_present(
    total: Callable[[PyTree[Array], Array], PyTree[Array]],
    tree: PyTree[Array],
    coefficients: Float[Array, " m"],
    present: Bool[Array, " m"],
) -> PyTree[Array]:
    """A sum with coefficients, 0 for those who do not count, whatever these hold.

    0 times a NaN or an infinity is NaN, so a finite sum is the right one. Any other is taken again with
    zeros for those who do not count.
    """
    found = total(tree, coefficients)

    def again(tree: PyTree[Array], found: PyTree[Array]) -> PyTree[Array]:
        nothing = jax.tree.map(jnp.zeros_like, tree)
        return total(select(present, tree, nothing), coefficients)

    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found)]).all()
    return jax.lax.cond(finite, lambda tree, found: found, again, tree, found)


def _sum_of_rows(factors: Float[Array, " m"], leaf: Float[Array, "m ..."]) -> Float[Array, "..."]:
    """In the dtype of the factors."""
    # A TPU would copy a leaf to other tiles to make rows of it, and devices that share models would
    # bring them together.
    kept = platform() == "tpu" or model_devices() > 1
    flat = leaf if kept else leaf.reshape(len(leaf), math.prod(leaf.shape[1:]))
    values, exact = flat.astype(factors.dtype), jax.lax.Precision.HIGHEST
    # One client is computed by all devices, and they have its row.
    devices = client_devices() if len(leaf) > 1 else 1
    with sends(lambda: mean_over(devices, size(values) / len(leaf))):
        product = jnp.tensordot(factors, values, axes=1, precision=exact)
    return product.reshape(leaf.shape[1:])


def sum_clients(
    function: Callable[..., PyTree[Array]],
    *stacked: PyTree[Array],
    shared: tuple[PyTree[Array], ...] = (),
) -> PyTree[Array]:
    """`sum_i function(*(tree[i] for tree in stacked), *shared)`, without an array of all terms.

    A CPU adds one client's term after another, accelerators reduce them in one pass. Where clients are
    dealt over devices, each adds up its own, and the sums are added. Sums are in the terms' own dtype:
    integers wrap around, so they are the same in any order; make narrow numbers wide in `function`.

    Args:
      function: of one client's rows, then of what is shared; a tree of arrays.
      *stacked: pytrees whose leaves share the leading axis m >= 1.
      shared: pytrees that every client reads whole.

    Returns:
      A tree as `function` returns it.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.function("function", function)
    count = validation.leading_axis("stacked", stacked, least=1)

    def here(stacked: Any, shared: Any) -> PyTree[Array]:
        if platform() != "cpu":
            terms = jax.vmap(lambda row: function(*row, *shared))(stacked)
            return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0, dtype=leaf.dtype), terms)
        rows = jax.tree.leaves(stacked)[0].shape[0]

        def term(place: Any) -> PyTree[Array]:
            row = jax.tree.map(
                lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, 0, False), stacked
            )
            return function(*row, *shared)

        def add(place: Array, total: PyTree[Array]) -> PyTree[Array]:
            return jax.tree.map(jnp.add, total, term(place))

        shapes = jax.eval_shape(term, 0)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.fori_loop(0, rows, add, zeros)

    if client_devices(count) == 1:
        return here(stacked, shared)

    def dealt(stacked: Any, shared: Any) -> PyTree[Array]:
        return jax.lax.psum(here(stacked, shared), CLIENTS)

    return jax.shard_map(
        dealt,
        in_specs=(PartitionSpec(CLIENTS), PartitionSpec()),
        out_specs=PartitionSpec(),
        axis_names={CLIENTS},
        check_vma=False,
    )(stacked, jax.tree.map(jnp.asarray, shared))


def mean_metrics(metrics: PyTree[Array], weights: Float[Array, " m"]) -> PyTree[Array]:
    """The weighted mean of what clients measured, over those of positive weight.

    Whatever a client of weight 0 holds, a NaN even, does not count. Where all weights are 0 nothing
    was measured, and every mean is NaN: a 0 would be read as a loss or an accuracy of 0.

    Args:
      metrics: leaves `[m, ...]` of real numbers, integers or booleans; a tree without leaves stays.
      weights: `[m]`, >= 0.

    Returns:
      Leaves `[...]`: of floating-point metrics at least float32, of integers and booleans float32.

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> losses = {"loss": jnp.array([1.0, 3.0, jnp.nan])}
      >>> float(dx.mean_metrics(losses, jnp.array([1.0, 1.0, 0.0]))["loss"])
      2.0
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
