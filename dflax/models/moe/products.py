"""Products of rows with the matrices of their groups, and matrices of which only a slice is trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 64


class Owned(NamedTuple):
    """The stacked matrices of E experts, of which a client trains a slice.

    It stands for a parameter `[E, ...]` in the tree that a model is applied to. Gradients are formed
    for `own` alone.

    Attributes:
      whole: `[E, ...]`, all experts as they were last heard of; what it holds in the slice is not read.
      own: `[q, ...]`, the experts first, ..., first + q - 1.
      first: `[]` int32.
    """

    whole: Float[Array, "E ..."]
    own: Float[Array, "q ..."]
    first: Int[Array, ""]


def joined(weights: Array | Owned) -> Float[Array, "E ..."]:
    """The parameter as one array; gradients reach `own` through a slice of those of all experts."""
    return placed(*weights) if isinstance(weights, Owned) else weights


def placed(
    whole: Float[Array, "E ..."], own: Float[Array, "q ..."], first: Int[Array, ""]
) -> Float[Array, "E ..."]:
    """The whole, which is not trained, with the own rows in their place."""
    still = jax.lax.stop_gradient(whole)
    return jax.lax.dynamic_update_slice_in_dim(still, own, first, 0)


def every_product(x: Float[Array, "T D"], weights: Array | Owned) -> Float[Array, "E T H"]:
    """`x @ w[e]` for every expert."""
    if not isinstance(weights, Owned):
        return jnp.einsum("td,edh->eth", x, weights)
    return _placed("td,edh->eth", x, x, weights)


def paired_product(x: Float[Array, "E T D"], weights: Array | Owned) -> Float[Array, "E T H"]:
    """`x[e] @ w[e]` for every expert."""
    if not isinstance(weights, Owned):
        return jnp.einsum("etd,edh->eth", x, weights)
    own = jax.lax.dynamic_slice_in_dim(x, weights.first, weights.own.shape[0], 0)
    return _placed("etd,edh->eth", x, own, weights)


def _placed(equation: str, x: Array, own: Array, weights: Owned) -> Array:
    """The products with all matrices, those with the own ones in their place."""
    others = joined(weights._replace(own=jnp.zeros_like(weights.own)))
    products = jnp.einsum(equation, x, others)
    mine = jnp.einsum(equation, own, weights.own)
    return jax.lax.dynamic_update_slice_in_dim(products, mine, weights.first, 0)


def ragged_product(
    x: Float[Array, "R D"], weights: Array | Owned, sizes: Int[Array, " E"]
) -> Float[Array, "R H"]:
    """`x[r] @ w[e]` for rows that are sorted by their expert e, by `jax.lax.ragged_dot`.

    Args:
      x: rows; the first `sizes[0]` are of expert 0, and so on.
      weights: `[E, D, H]`.
      sizes: rows of each expert, of sum R.
    """
    if not isinstance(weights, Owned):
        return jax.lax.ragged_dot(x, weights, sizes)
    return _own_gradient(_RAGGED)(x, weights.own, weights.whole, weights.first, sizes)


def blocked_product(
    x: Float[Array, "R D"], weights: Array | Owned, sizes: Int[Array, " E"]
) -> Float[Array, "R H"]:
    """The same as `ragged_product`, a block of rows at a time, for machines without its instruction.

    The blocks of an expert begin at its first row, so that the last one may reach into the rows of the
    next expert, which writes them again. As many blocks are done as there are.
    """
    if not isinstance(weights, Owned):
        weights = Owned(weights, weights, jnp.int32(0))
    return _own_gradient(_BLOCKED)(x, weights.own, weights.whole, weights.first, sizes)


class _Form(NamedTuple):
    """A product of rows with their matrices, and that of its reverse rule.

    Attributes:
      rows: `(x, own, whole, first, sizes, transposed) -> x[r] @ w[e]`, or `@ w[e]^T`.
      slice: `(x, g, q, first, sizes) -> [q, D, H]`, the sums of `x[r]^T g[r]` of the own experts.
    """

    rows: Callable[..., Array]
    slice: Callable[..., Array]


def _own_gradient(form: _Form) -> Callable[..., Array]:
    """The product as a function that is differentiated for its rows and own matrices alone."""

    @jax.custom_vjp
    def product(x: Array, own: Array, whole: Array, first: Array, sizes: Array) -> Array:
        return form.rows(x, own, whole, first, sizes, False)

    def forward(*given: Array) -> tuple[Array, Any]:
        return product(*given), given

    def backward(given: Any, g: Array) -> tuple[Any, ...]:
        x, own, whole, first, sizes = given
        back = form.rows(g, own, whole, first, sizes, True)
        return (
            back,
            form.slice(x, g, own.shape[0], first, sizes).astype(own.dtype),
            None,
            None,
            None,
        )

    product.defvjp(forward, backward)
    return product


def _ragged_rows(
    x: Array, own: Array, whole: Array, first: Array, sizes: Array, transposed: bool
) -> Array:
    matrices = joined(Owned(whole, own, first))
    return jax.lax.ragged_dot(x, matrices.swapaxes(1, 2) if transposed else matrices, sizes)


_SUMS_OVER_ROWS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[],
)


def _ragged_slice(x: Array, g: Array, count: int, first: Array, sizes: Array) -> Array:
    start = jnp.where(jnp.arange(sizes.shape[0]) < first, sizes, 0).sum()
    own = jax.lax.dynamic_slice_in_dim(sizes, first, count, 0)
    x, g = jnp.roll(x, -start, axis=0), jnp.roll(g, -start, axis=0)
    return jax.lax.ragged_dot_general(x, g, own, _SUMS_OVER_ROWS)


_RAGGED = _Form(_ragged_rows, _ragged_slice)


class _Blocks(NamedTuple):
    """Blocks of rows.

    Attributes:
      expert: `[E + 1]`, number of the first block of each expert, and of all.
      start: `[E]`, first row of each expert.
      sizes: `[E]`, its rows.
    """

    expert: Int[Array, " E+1"]
    start: Int[Array, " E"]
    sizes: Int[Array, " E"]

    def at(self, number: Array, block: int) -> tuple[Array, Array, Array]:
        """Expert, first row and rows of a block."""
        expert = (self.expert[1:] <= number).sum()
        done = (number - self.expert[expert]) * block
        return expert, self.start[expert] + done, self.sizes[expert] - done


def _blocks(sizes: Array, block: int) -> _Blocks:
    ends = jnp.cumsum((sizes + block - 1) // block)
    return _Blocks(
        jnp.concatenate([jnp.zeros(1, ends.dtype), ends]), jnp.cumsum(sizes) - sizes, sizes
    )


def _blocked_rows(
    x: Array, own: Array, whole: Array, first: Array, sizes: Array, transposed: bool
) -> Array:
    rows, count, block = x.shape[0], own.shape[0], min(BLOCK, x.shape[0])
    blocks = _blocks(sizes, block)
    padded = jnp.pad(x, ((0, block), (0, 0)))
    width = whole.shape[1 if transposed else 2]

    def one(number: Array, y: Array) -> Array:
        expert, start, _ = blocks.at(number, block)
        mine = (expert >= first) & (expert < first + count)
        matrix = jnp.where(mine, own[jnp.clip(expert - first, 0, count - 1)], whole[expert])
        some = jax.lax.dynamic_slice_in_dim(padded, start, block, 0)
        product = jnp.dot(some, matrix.T if transposed else matrix)
        return jax.lax.dynamic_update_slice_in_dim(y, product, start, 0)

    y = jnp.zeros((rows + block, width), jnp.result_type(x, own))
    return jax.lax.fori_loop(0, blocks.expert[-1], one, y)[:rows]


def _blocked_slice(x: Array, g: Array, count: int, first: Array, sizes: Array) -> Array:
    block = min(BLOCK, x.shape[0])
    blocks = _blocks(sizes, block)
    x, g = (jnp.pad(rows, ((0, block), (0, 0))) for rows in (x, g))

    def one(number: Array, total: Array) -> Array:
        expert, start, left = blocks.at(number, block)
        inputs, slopes = (jax.lax.dynamic_slice_in_dim(rows, start, block, 0) for rows in (x, g))
        slopes = jnp.where(jnp.arange(block)[:, None] < left, slopes, 0)
        wide = jnp.matmul(inputs.T, slopes, preferred_element_type=total.dtype)
        return total.at[expert - first].add(wide)

    wide = jnp.promote_types(jnp.result_type(x, g), jnp.float32)
    total = jnp.zeros((count, x.shape[1], g.shape[1]), wide)
    return jax.lax.fori_loop(blocks.expert[first], blocks.expert[first + count], one, total)


_BLOCKED = _Form(_blocked_rows, _blocked_slice)
