"""Order statistics over the client axis: sorted rows, medians, trimmed means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.aggregation.rows import sorting_network
from dflax.aggregation.rows.column_blocks import map_columns
from dflax.aggregation.rows.order_keys import KINDS, extremes, from_keys, to_keys
from dflax.clients import platform

# Up to so many rows, all comparators that the wanted ranks need are one operation: each value is read
# once. With more, LLVM no longer vectorises it.
UNROLLED = 128
COLUMNS = 1 << 14
# Beyond, stages of comparators pass over a block that stays in the second-level cache.
STAGED_ELEMENTS = 1 << 15
# Compilers for accelerators take 3 to 5 s for a network of so many rows, for 128 up to a minute. With
# more, XLA's own sort is compiled, in blocks, since it needs as much memory again as it sorts.
UNROLLED_ELSEWHERE = 32
SORTED_ELEMENTS = 1 << 24


def sorted_rows(
    values: Float[Array, "n d"], present: Bool[Array, " n"] | None = None
) -> Float[Array, "n d"]:
    """Every column in ascending order: `out[0] <= out[1] <= ...`, for each coordinate for itself.

    NaNs count as larger than +inf, as in `numpy.sort`. Absent rows count as larger still, and come
    out as NaNs.

    Args:
      values: `[n, d]` of a floating-point dtype.
      present: `[n]` mask of the rows that count; None for all.

    Returns:
      `[n, d]`; with m present rows, rows 0 to m - 1 are theirs.

    Raises:
      TypeError: values that are no real numbers.
      ValueError: values that are not `[n, d]`, n >= 1, or a mask of another shape.
    """
    values, present = _require_rows(values, present)
    if present is not None:
        values = jnp.where(present[:, None], values, jnp.nan)
    return _sort(values)


def median_rows(
    values: Float[Array, "n d"], present: Bool[Array, " n"] | None = None
) -> Float[Array, " d"]:
    """The coordinate-wise median; of an even number of rows the mean of the two middle ones.

    With n > 2 f rows of which f are arbitrary, each coordinate lies between the smallest and the
    largest of the other rows there. NaNs count as larger than +inf, so that they are arbitrary values
    like others; the median is NaN only where it falls on one.

    Args:
      values: `[n, d]` of a floating-point dtype.
      present: `[n]` mask of the rows that count; None for all. Without any the result is 0.

    Returns:
      `[d]`, for example (2, 5) of the rows (1, 5), (2, 4), (9, 6).

    Raises:
      TypeError, ValueError: as `sorted_rows`.
    """
    values, present = _require_rows(values, present)
    return _trimmed(values, (values.shape[0] - 1) // 2, present)


def trimmed_mean_rows(
    values: Float[Array, "n d"], trim: int, present: Bool[Array, " n"] | None = None
) -> Float[Array, " d"]:
    """In each coordinate the mean of what is left without the `trim` smallest and largest values.

        out_j = 1 / (n - 2 f) sum_{r = f}^{n - f - 1} x_(r)j         x_(0)j <= x_(1)j <= ..., f = trim

    With m present rows, `min(trim, (m - 1) // 2)` are trimmed on each side: where m <= 2 trim that is
    the median, the most that can be trimmed. NaNs count as larger than +inf.

    Args:
      values: `[n, d]` of a floating-point dtype.
      trim: f in [0, (n - 1) // 2], static.
      present: `[n]` mask of the rows that count; None for all. Without any the result is 0.

    Returns:
      `[d]`, for example 3 of the column 1, 2, 3, 4, 100 with trim 1.

    Raises:
      TypeError: values that are no real numbers, or a trim that is no integer.
      ValueError: values that are not `[n, d]`, a mask of another shape, or a trim out of range.
    """
    values, present = _require_rows(values, present)
    require_trim(trim, values.shape[0])
    return _trimmed(values, trim, present)


def require_trim(trim: int, rows: int) -> None:
    """Refuse to trim all of n rows: n > 2 trim."""
    fix = f"Each side of {rows} rows loses as many, and at least one row has to stay: n > 2 trim."
    validation.integer("trim", trim, low=0, high=(rows - 1) // 2, fix=fix)


def trimmed(trim: int, present: Int[Array, ""]) -> Int[Array, ""]:
    """How many of m present rows are trimmed on each side: `min(trim, (m - 1) // 2)`, at least 0."""
    return jnp.clip((present - 1) // 2, 0, trim)


@jax.custom_jvp
def _sort(values: Float[Array, "n d"]) -> Float[Array, "n d"]:
    def sort(block: Float[Array, "n c"]) -> Float[Array, "n c"]:
        return from_keys(_sorted_keys(to_keys(block), tuple(range(len(block)))), block.dtype)

    return map_columns(sort, values, _width(values.shape[0]))


@_sort.defjvp
def _sort_tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (values,), (change,) = primals, tangents
    order = jnp.argsort(to_keys(values), axis=0)
    return _sort(values), jnp.take_along_axis(change, order, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _trimmed(
    values: Float[Array, "n d"], trim: int, present: Bool[Array, " n"] | None
) -> Float[Array, " d"]:
    rows = values.shape[0]
    wide = jnp.promote_types(values.dtype, jnp.float32)
    kept = _kept(rows, trim, present, wide)
    unrolled = rows <= (UNROLLED if platform() == "cpu" else UNROLLED_ELSEWHERE)
    # With some rows absent, what is kept may reach down to the lower of the two ranks in the middle.
    first = trim if present is None else max(0, min(trim, rows // 2 - 1))
    ranks = tuple(range(first, rows - trim))

    def combine(block: Float[Array, "n c"]) -> Float[Array, " c"]:
        if not unrolled:
            ordered = from_keys(_sorted_keys(_keys(block, present), ranks), block.dtype)
            ordered = jnp.where(kept[:, None] > 0, ordered.astype(wide), 0)
            return jnp.matmul(kept, ordered, precision=jax.lax.Precision.HIGHEST)
        network = sorting_network.selecting(rows, ranks)
        # Row by row: of keys made together, XLA would make some fifty programs instead of one.
        keys = [to_keys(row) for row in block]
        if present is not None:
            fill = _fill(present, block.dtype)
            keys = [jnp.where(present[i], key, fill[i]) for i, key in enumerate(keys)]
        in_place = sorting_network.apply(network, keys)
        found = (from_keys(in_place[rank], block.dtype).astype(wide) for rank in ranks)
        # A value that is not kept may be infinite, and 0 times that is no number.
        parts = [
            jnp.where(kept[rank] > 0, kept[rank] * value, 0)
            for rank, value in zip(ranks, found, strict=True)
        ]
        return functools.reduce(jnp.add, parts)

    width = COLUMNS if unrolled else _width(rows)
    return map_columns(combine, values, width).astype(values.dtype)


@_trimmed.defjvp
def _trimmed_tangent(
    trim: int, primals: tuple[Array, Array | None], tangents: tuple[Array, Array | None]
) -> tuple[Array, Array]:
    values, present = primals
    order = jnp.argsort(_keys(values, present), axis=0)
    ordered = jnp.take_along_axis(tangents[0], order, 0)
    kept = _kept(values.shape[0], trim, present, jnp.promote_types(values.dtype, jnp.float32))
    moved = jnp.where(kept[:, None] > 0, kept[:, None] * ordered.astype(kept.dtype), 0).sum(0)
    return _trimmed(values, trim, present), moved.astype(values.dtype)


def _kept(
    rows: int, trim: int, present: Bool[Array, " n"] | None, dtype: jnp.dtype
) -> Float[Array, " n"]:
    """The share of every rank in the result, where `_fill` has put half of the absent rows below."""
    rank = jnp.arange(rows)
    count = jnp.int32(rows) if present is None else jnp.sum(present, dtype=jnp.int32)
    below = (rows - count) // 2 + trimmed(trim, count)
    left = jnp.where(count > 0, count - 2 * trimmed(trim, count), 0)
    share = 1 / jnp.maximum(left, 1).astype(dtype)
    return jnp.where((rank >= below) & (rank < below + left), share, 0)


def _keys(block: Float[Array, "n c"], present: Bool[Array, " n"] | None) -> Int[Array, "n c"]:
    """Sorting keys, those of absent rows from `_fill`."""
    keys = to_keys(block)
    if present is None:
        return keys
    return jnp.where(present[:, None], keys, _fill(present, block.dtype)[:, None])


def _fill(present: Bool[Array, " n"], dtype: jnp.dtype) -> Int[Array, " n"]:
    """Keys for absent rows: half of them, rounded down, below all numbers, the others above.

    So the middle of the present rows is in the middle of all rows, however many are absent, and a
    network for these ranks alone serves every mask.
    """
    lowest, highest = extremes(dtype)
    absent = ~present
    below = jnp.cumsum(absent) <= absent.sum() // 2
    return jnp.where(below, lowest, highest).astype(KINDS[jnp.dtype(dtype).itemsize])


def _sorted_keys(keys: Int[Array, "n c"], ranks: tuple[int, ...]) -> Int[Array, "n c"]:
    """Keys of which the rows of some ranks are in their places."""
    if platform() != "cpu":
        return jax.lax.sort(keys, dimension=0)
    return sorting_network.apply_stages(sorting_network.selecting(len(keys), ranks), keys)


def _width(rows: int) -> int:
    """Columns of a block that is sorted: a vector of 64 bytes at least."""
    return max(16, (STAGED_ELEMENTS if platform() == "cpu" else SORTED_ELEMENTS) // rows)


def _require_rows(
    values: Float[Array, "n d"], present: Bool[Array, " n"] | None
) -> tuple[Array, Array | None]:
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(
            f"values must hold real numbers, got {values.dtype}. Convert them to float32."
        )
    if values.ndim != 2 or not values.shape[0]:
        raise ValueError(
            f"values must be one row per client, [n, d] with n >= 1, got shape {values.shape}. "
            "For pytrees use dflax.aggregation.map_coordinates."
        )
    if present is None:
        return values, None
    if np.shape(present) != values.shape[:1]:
        raise ValueError(
            f"present must be a mask of shape ({values.shape[0]},), got {np.shape(present)}."
        )
    return values, jnp.asarray(present) > 0
