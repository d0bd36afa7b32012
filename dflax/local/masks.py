"""Sparse models with a fixed number of active entries per leaf: where they start, and how they move."""

import math
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from dflax import validation
from dflax.algorithm import Params

Masks = PyTree[Bool[Array, "..."]]
# Of no finite score, and of no inverted one.
LAST = np.uint32(0xFFFFFFFF)


def active_entries(params: Params, density: float) -> PyTree[int]:
    """How many entries of each leaf are active by the Erdős–Rényi-kernel (ERK) rule.

    A leaf of shape s gets the density `min(1, c sum(s) / prod(s))`, c such that the whole model has
    the density asked for: small leaves, biases among them, stay dense, large ones become sparse.

    Args:
      params: one model.
      density: share of active entries in the whole model, in (0, 1].

    Returns:
      A tree of integers like `params`, each >= 1.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Evci et al., Rigging the Lottery, arXiv 1911.11134.
    """
    validation.model("params", params)
    validation.real("density", density, low=0.0, high=1.0, low_open=True, scalar=True)
    leaves, structure = jax.tree.flatten(params)
    shapes = [np.shape(leaf) for leaf in leaves]
    sizes = [math.prod(shape) for shape in shapes]
    # Size times sum(s) / prod(s), the entries a leaf gets per unit of c.
    weight = [max(1, sum(shape)) for shape in shapes]
    dense: set[int] = set()
    wanted = Fraction(density).limit_denominator(10**6) * sum(sizes)
    while True:
        open_ones = [i for i in range(len(sizes)) if i not in dense]
        left = wanted - sum(sizes[i] for i in dense)
        scale = left / sum(weight[i] for i in open_ones) if open_ones else Fraction(0)
        full = {i for i in open_ones if scale * weight[i] >= sizes[i]}
        if not full:
            break
        dense |= full
    counts = [
        sizes[i] if i in dense else max(1, round(scale * weight[i])) for i in range(len(sizes))
    ]
    return jax.tree.unflatten(structure, counts)


def random_masks(key: Key[Array, ""], params: Params, counts: PyTree[int]) -> Masks:
    """Masks with `counts` active entries per leaf, uniformly at random."""
    leaves, structure = jax.tree.flatten(params)
    masks = [
        _first(jax.random.bits(own, leaf.shape, jnp.uint32), jnp.int32(count))
        for own, leaf, count in zip(
            jax.random.split(key, len(leaves)), leaves, jax.tree.leaves(counts), strict=True
        )
    ]
    return jax.tree.unflatten(structure, masks)


def masked(tree: PyTree[Array], masks: Masks) -> PyTree[Array]:
    """The tree with zeros where the masks are False."""
    return jax.tree.map(lambda leaf, mask: jnp.where(mask, leaf, 0), tree, masks)


def prune_and_grow(
    params: Params,
    masks: Masks,
    growth: PyTree[Array],
    share: float | Float[Array, ""],
    counts: PyTree[int],
) -> Masks:
    """Moves a share of every leaf's active entries: the smallest out, others in.

    In each leaf the `ceil(share k)` active entries of least |x| go, k their number, and as many enter
    among those that were inactive, of largest `growth`. Where fewer are inactive, fewer move.

    Args:
      params: one model.
      masks: its active entries.
      growth: a tree like `params`, >= 0: |gradient|, or random numbers; larger enters first.
      share: in [0, 1], traceable.
      counts: k of every leaf, static; see `active_entries`.

    Returns:
      New masks with the same numbers of active entries.
    """

    def move(x: Array, mask: Array, wish: Array, count: int) -> Array:
        moved = jnp.ceil(jnp.asarray(share, jnp.float32) * count - 1e-5).astype(jnp.int32)
        moved = jnp.minimum(moved, x.size - count)
        goes = _first(jnp.where(mask, _ranks(jnp.abs(x)), LAST), moved)
        enters = _first(jnp.where(mask, LAST, ~_ranks(wish)), moved)
        return (mask & ~goes) | enters

    return jax.tree.map(move, params, masks, growth, counts)


def _first(ranks: UInt32[Array, "..."], count: Int[Array, ""]) -> Bool[Array, "..."]:
    """True at the `count` lowest ranks; of equal ones at the first places.

    The rank and the place at which to stop are found bit by bit, counting entries below: tens of
    passes over the leaf, where sorting it takes several times longer.
    """
    flat = ranks.reshape(-1)
    places = jnp.arange(flat.size, dtype=jnp.uint32)

    def most(reached: Callable[[Array], Array]) -> Array:
        """The largest number of which `reached` is true, as it is of all smaller ones."""

        def try_bit(bit: Array, number: Array) -> Array:
            candidate = number | (jnp.uint32(1) << (31 - bit).astype(jnp.uint32))
            return jnp.where(reached(candidate), candidate, number)

        return jax.lax.fori_loop(0, 32, try_bit, jnp.uint32(0))

    stop = most(lambda rank: jnp.sum(flat < rank, dtype=jnp.int32) < count)
    below, equal = flat < stop, flat == stop
    left = count - jnp.sum(below, dtype=jnp.int32)
    end = most(lambda place: jnp.sum(equal & (places < place), dtype=jnp.int32) <= left)
    return (below | (equal & (places < end))).reshape(ranks.shape)


def _ranks(scores: Float[Array, "..."]) -> UInt32[Array, "..."]:
    """Numbers in the order of scores >= 0: the bits of floating-point numbers are."""
    return jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
