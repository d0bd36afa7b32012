"""Products of all rows with each other, in blocks of columns that stay in the cache."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax.aggregation.rows.column_blocks import sum_columns
from dflax.clients import platform

# Columns of a block, which a CPU keeps in its cache. Elsewhere a block has so many elements: it is
# centred by itself, and no second copy of all messages is made.
COLUMNS = 1 << 12
ELEMENTS = 1 << 24
# XLA's product on a CPU is fast where the result has a multiple of so many columns, and keeps one core
# busy where it has few rows: up to so many, each entry of the triangle is computed once, by columns.
TILES, FEW = (32, 16), 64


def products(values: Float[Array, "m c"]) -> Float[Array, "m m"]:
    """`values @ values.T` at full precision, whose long inner axis XLA's CPU product handles badly."""
    rows = len(values)
    parts = sum_columns(functools.partial(_parts, rows), values, width=_width(rows))
    return _whole(rows, parts)


def centred_products(
    values: Float[Array, "m c"], centre: Float[Array, " c"], *, origin: bool = False
) -> Float[Array, "r r"]:
    """The products of `values - centre`.

    Args:
      values: `[m, c]`.
      centre: `[c]`.
      origin: whether a last row stands for the origin, `-centre`.

    Returns:
      `[m, m]`, or `[m + 1, m + 1]` with the origin.
    """
    rows = len(values) + origin

    def centred(block: Float[Array, "m w"], middle: Float[Array, " w"]) -> list[Array]:
        moved = block - middle
        return _parts(rows, jnp.concatenate([moved, -middle[None]]) if origin else moved)

    return _whole(rows, sum_columns(centred, values, centre, width=_width(rows)))


def _parts(rows: int, block: Float[Array, "m w"]) -> list[Float[Array, "..."]]:
    """What of `block @ block.T` is computed: tiles of columns from the diagonal down."""
    return [
        jnp.matmul(block[first:], block[first:last].T, precision=jax.lax.Precision.HIGHEST)
        for first, last in _tiles(rows)
    ]


def _whole(rows: int, parts: list[Float[Array, "..."]]) -> Float[Array, "m m"]:
    """The symmetric matrix of the parts."""
    if len(parts) == 1:
        return parts[0]
    padded = [
        jnp.pad(part, ((first, 0), (0, 0)))
        for part, (first, _) in zip(parts, _tiles(rows), strict=True)
    ]
    lower = jnp.concatenate(padded, 1)
    return jnp.where(jnp.tri(rows, dtype=bool), lower, lower.T)


def _tiles(rows: int) -> list[tuple[int, int]]:
    """Where columns are cut: as many of the first size as fit, then of the next, then the rest."""
    if platform() != "cpu" or not TILES[-1] < rows <= FEW:
        return [(0, rows)]
    ends = [0]
    for size in TILES:
        while ends[-1] + size <= rows:
            ends.append(ends[-1] + size)
    if ends[-1] < rows:
        ends.append(rows)
    return list(itertools.pairwise(ends))


def _width(rows: int) -> int:
    return COLUMNS if platform() == "cpu" else max(COLUMNS, ELEMENTS // rows)
