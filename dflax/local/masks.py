"""Sparse models with a fixed number of active entries per leaf: where they start, and how they move."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Params

Masks = PyTree[Bool[Array, "..."]]


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
        _first(jax.random.uniform(own, leaf.shape), jnp.int32(count))
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
      growth: a tree like `params`: |gradient|, or random numbers; larger enters first.
      share: in [0, 1], traceable.
      counts: k of every leaf, static; see `active_entries`.

    Returns:
      New masks with the same numbers of active entries.
    """

    def move(x: Array, mask: Array, wish: Array, count: int) -> Array:
        moved = jnp.ceil(jnp.asarray(share, jnp.float32) * count - 1e-5).astype(jnp.int32)
        moved = jnp.minimum(moved, x.size - count)
        goes = _first(jnp.where(mask, jnp.abs(x), jnp.inf), moved)
        enters = _first(jnp.where(mask, jnp.inf, -wish), moved)
        return (mask & ~goes) | enters

    return jax.tree.map(move, params, masks, growth, counts)


def _first(scores: Float[Array, "..."], count: Int[Array, ""]) -> Bool[Array, "..."]:
    """True at the `count` smallest scores; of equal ones the first."""
    order = jnp.argsort(scores.reshape(-1))
    chosen = (
        jnp.zeros(scores.size, bool)
        .at[order]
        .set(jnp.arange(scores.size) < count, unique_indices=True)
    )
    return chosen.reshape(scores.shape)
