"""Products of all rows with each other, in blocks of columns that stay in the cache."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax.aggregation.rows.column_blocks import sum_columns
from dflax.clients import platform

# Columns of a block, which a CPU keeps in its cache. Elsewhere a block has so many elements: it is
# centred by itself, and no second copy of all messages is made.
COLUMNS = 1 << 12
ELEMENTS = 1 << 24


def products(values: Float[Array, "m c"]) -> Float[Array, "m m"]:
    """`values @ values.T` at full precision, whose long inner axis XLA's CPU product handles badly."""
    return sum_columns(_product, values, width=_width(len(values)))


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

    def centred(block: Float[Array, "m w"], middle: Float[Array, " w"]) -> Float[Array, "r r"]:
        moved = block - middle
        return _product(jnp.concatenate([moved, -middle[None]]) if origin else moved)

    return sum_columns(centred, values, centre, width=_width(len(values)))


def _product(block: Float[Array, "m w"]) -> Float[Array, "m m"]:
    return jnp.matmul(block, block.T, precision=jax.lax.Precision.HIGHEST)


def _width(rows: int) -> int:
    return COLUMNS if platform() == "cpu" else max(COLUMNS, ELEMENTS // rows)
