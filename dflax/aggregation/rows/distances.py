"""Distances between clients' models from their products: what Krum and its relatives look at."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dflax import validation
from dflax.aggregation.rows.coordinates import sum_coordinates
from dflax.aggregation.rows.products import centred_products
from dflax.aggregation.rows.weighted_median import weighted_centre
from dflax.clients import platform
from dflax.kernels.ranks import ranks
from dflax.kernels.wall import wall


def squared_distances(
    stacked: PyTree[Array], weights: Float[Array, " m"] | None = None
) -> Float[Array, "m m"]:
    """The squared distances `D_ij = |x_i - x_j|^2` of m models, all parameters together.

    They come from products of centred models, `D_ij = G_ii + G_jj - 2 G_ij` with
    `G_ij = <x_i - c, x_j - c>`, at the cost of one matrix product. Products lose digits as
    `|x_i - c|^2 / D_ij`, so the centre c is the coordinate-wise median by weight. Models that hold a
    NaN or an infinity have no part in it. While arbitrary models hold less than half of the weight
    of the rest, c lies among the others, and neither a common offset nor a far outlier takes digits
    from the distances between the others.

    Krum's score of client i, with f arbitrary clients of n >= 2 f + 3, is the sum of its n - f - 2
    smallest distances to others: `jnp.sort(squared_distances(x), 1)[:, 1 : n - f - 1].sum(1)`. For rules
    that first replace models by means of several, see `nearest` and `distances_of_mixtures`.

    Args:
      stacked: floating-point leaves `[m, ...]`.
      weights: `[m]`, >= 0; models of weight 0 are absent, whatever they hold. None: all count.

    Returns:
      `[m, m]`, symmetric, >= 0, 0 on the diagonal; float32, or the widest dtype among the leaves.
      Distances to absent models, and to those that hold a NaN or an infinity, are infinite. For
      example ((0, 1, 4), (1, 0, 1), (4, 1, 0)) of the models 1, 2, 3.

    Raises:
      TypeError: a leaf that does not hold real numbers.
      ValueError: leaves whose leading axes differ, or weights of another shape or below 0.

    References:
      Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent,
      NeurIPS 2017, arXiv 1703.02757.
    """
    products, _ = robust_products(stacked, weights)
    distances = distances_of(products)
    mask = present(weights, len(distances))
    if mask is None:
        return distances
    seen = mask[:, None] & mask | jnp.eye(len(distances), dtype=bool)
    return jnp.where(seen, distances, jnp.inf)


def nearest(distances: Float[Array, "m m"], count: int | Int[Array, ""]) -> Float[Array, "m m"]:
    """Mixing weights of the models nearest to each one: 1 / k for k of them, itself among them, else 0.

    Args:
      distances: `[m, m]`, 0 on the diagonal, infinite to who is absent: see `squared_distances`.
      count: k in [1, m], traceable, because it may depend on who is there. Of equal distances those
        of lower numbers count.

    Returns:
      `[m, m]`, rows that sum to 1: `nearest(D, k) @ x` are the means of nearest-neighbour mixing.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    distances = _table("distances", distances)
    if not validation.is_traced(count):
        # Found in a round that is not compiled.
        count = count.item() if isinstance(count, jax.Array) and count.ndim == 0 else count
        validation.integer("count", count, low=1, high=len(distances))
    # Itself first, even where others are just as near.
    own_first = jnp.where(jnp.eye(len(distances), dtype=bool), -1, distances)
    return jnp.where(ranks(own_first) < count, 1 / jnp.asarray(count, distances.dtype), 0)


def distances_of_mixtures(
    distances: Float[Array, "m m"], mixing: Float[Array, "r m"]
) -> Float[Array, "r r"]:
    """The squared distances of `y_a = sum_i A_ai x_i`, from those of the x_i alone.

        |y_a - y_b|^2 = C_ab - (C_aa + C_bb) / 2,    C = A D A'

    Args:
      distances: D, `[m, m]`, as `squared_distances` gives them.
      mixing: A, `[r, m]`, rows that sum to 1.

    Returns:
      `[r, r]`, symmetric, >= 0, 0 on the diagonal. Infinite where a mixture has a part in a model from
      which one of the other mixture's is infinitely far.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    distances = _table("distances", distances)
    mixing = _table("mixing", mixing, columns=len(distances))
    far = jnp.isinf(distances).astype(mixing.dtype)
    part = (mixing != 0).astype(mixing.dtype)
    apart = (part @ far @ part.T) > 0
    known = jnp.where(jnp.isinf(distances), 0, distances)
    exact = jax.lax.Precision.HIGHEST
    crossed = jnp.matmul(jnp.matmul(mixing, known, precision=exact), mixing.T, precision=exact)
    own = jnp.diagonal(crossed)
    between = jnp.maximum((crossed + crossed.T - own[:, None] - own) / 2, 0)
    between = jnp.where(apart, jnp.inf, between)
    return jnp.where(jnp.eye(len(own), dtype=bool), 0, between)


def _table(name: str, value: Array, columns: int | None = None) -> Float[Array, "r c"]:
    """A matrix of real numbers, which may be infinite, with so many columns; default: square."""
    validation.arrays(name, value)
    table = jnp.asarray(value)
    if not jnp.issubdtype(table.dtype, jnp.floating):
        raise TypeError(f"{name} must hold real numbers, got {table.dtype}.")
    width = columns if columns is not None or table.ndim != 2 else table.shape[0]
    if table.ndim != 2 or not table.size or table.shape[1] != width:
        raise ValueError(f"{name} must be a matrix with one column per model, got {table.shape}.")
    return table


def robust_products(
    stacked: PyTree[Array], weights: Float[Array, " m"] | None = None, *, origin: bool = False
) -> tuple[Float[Array, "r r"], Bool[Array, " m"]]:
    """The products `<x_i - c, x_j - c>`, c the coordinate-wise median by weight of the finite models.

    Models that are absent, or hold a NaN or an infinity, have no part in c, but they have their
    products. With `origin`, a last row and column stand for the model 0, at the same price.

    Args:
      stacked: floating-point leaves `[m, ...]`.
      weights: `[m]`, >= 0; None: all models count the same.
      origin: whether the model 0 is among them.

    Returns:
      `[m, m]`, or `[m + 1, m + 1]`; and `[m]`, which of the models hold finite numbers only.
    """
    count = validation.leading_axis("stacked", stacked)
    mask = present(weights, count)
    finite = finite_rows(stacked)
    shares = finite if mask is None else jnp.where(finite, jnp.asarray(weights), 0)
    shares = shares.astype(jnp.promote_types(shares.dtype, jnp.float32))

    def multiply(values: Float[Array, "m c"], shares: Float[Array, " m"]) -> Array:
        return centred_products(values, weighted_centre(values, shares), origin=origin)

    return sum_coordinates(multiply, stacked, shares), finite


def finite_rows(stacked: PyTree[Array]) -> Bool[Array, " m"]:
    """Which models hold finite numbers only, `[m]`, of leaves `[m, ...]`."""

    # 0 x is 0, or NaN where x is not finite. On a CPU a product with zeros that the compiler does not
    # know to be zeros takes half as long as a sum.
    def of(leaf: Float[Array, "m ..."]) -> Bool[Array, " m"]:
        rows = leaf.reshape(len(leaf), -1)
        if platform() != "cpu" or rows.dtype.itemsize < 4:
            return jnp.sum(0 * rows, axis=1) == 0
        zeros = jnp.broadcast_to(wall(jnp.zeros((), rows.dtype)), rows.shape[1:])
        return jnp.matmul(rows, zeros) == 0

    return functools.reduce(jnp.logical_and, [of(leaf) for leaf in jax.tree.leaves(stacked)])


def distances_of(products: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """`D_ij = G_ii + G_jj - 2 G_ij`, at least 0, 0 on the diagonal, infinite where G is not finite."""
    norms = jnp.diagonal(products)
    squared = norms[:, None] + norms - (products + products.T)
    squared = jnp.where(jnp.isfinite(squared), jnp.maximum(squared, 0), jnp.inf)
    return jnp.where(jnp.eye(len(norms), dtype=bool), 0, squared)


def present(weights: Float[Array, " m"] | None, count: int) -> Bool[Array, " m"] | None:
    """Which of m models count: those of positive weight; None when all do.

    Raises:
      ValueError: weights of another shape, or below 0.
    """
    if weights is None:
        return None
    validation.real("weights", weights, low=0.0)
    if np.shape(weights) != (count,):
        raise ValueError(
            f"weights must be one number per model, shape ({count},), got {np.shape(weights)}."
        )
    return jnp.asarray(weights) > 0
