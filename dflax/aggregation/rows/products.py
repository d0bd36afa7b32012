"""Products of all rows with each other, in blocks of columns that stay in the cache."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax.aggregation.rows.column_blocks import sum_columns
from dflax.clients import platform
from dflax.kernels.wall import wall

# Columns of a block, which a CPU keeps in its cache. Elsewhere a block has so many elements: it is
# centred by itself, and no second copy of all messages is made.
COLUMNS = 1 << 13
ELEMENTS = 1 << 24
# XLA's product on a CPU keeps one core busy where the result has few rows. With fewer than so many it is
# fastest where both factors are contracted over their first axis.
FEW = 64


def products(values: Float[Array, "m c"]) -> Float[Array, "m m"]:
    """`values @ values.T` at full precision, whose long inner axis XLA's CPU product handles badly."""
    return _mirrored(sum_columns(_of_block, values, width=_width(len(values))))


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
    exact = jax.lax.Precision.HIGHEST

    def centred(block: Float[Array, "m w"], middle: Float[Array, " w"]) -> list[Array]:
        moved = block - middle
        found = [_of_block(moved)]
        if origin:
            found += [jnp.matmul(given, -middle, precision=exact) for given in (moved, -middle)]
        return found

    between, *to_origin = sum_columns(centred, values, centre, width=_width(len(values)))
    between = _mirrored(between)
    if not origin:
        return between
    own, last = to_origin
    return jnp.block([[between, own[:, None]], [own, last]])


def _of_block(block: Float[Array, "m w"]) -> Float[Array, "m m"]:
    """`block @ block.T`."""
    exact = jax.lax.Precision.HIGHEST
    if platform() != "cpu" or len(block) >= FEW:
        return jnp.matmul(block, block.T, precision=exact)
    stored = wall(block.T)
    return jnp.einsum("wi,wj->ij", stored, stored, precision=exact)


def _mirrored(table: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """Symmetric to the last digit, which a product need not be."""
    return jnp.where(jnp.tri(len(table), dtype=bool), table, table.T)


def _width(rows: int) -> int:
    return COLUMNS if platform() == "cpu" else max(COLUMNS, ELEMENTS // rows)
