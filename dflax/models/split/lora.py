"""Low-rank adapters: a small tree beside a model, trained in its place."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.data.dataset import AnyArray
from dflax.parts import Chooser, name_of


class LowRank(NamedTuple):
    """A change of a matrix, `down @ up`.

    Attributes:
      down: `[inputs, rank]`.
      up: `[rank, outputs]`.
    """

    down: Float[Array, "inputs rank"]
    up: Float[Array, "rank outputs"]


def _kernels(path: str) -> bool:
    return path.split("/")[-1] == "kernel"


def lora(
    key: Key[Array, ""], params: Params, rank: int, where: Chooser = _kernels
) -> PyTree[LowRank]:
    """An adapter of some matrices of a model, which changes nothing yet.

        W becomes W + scale A B,   A ~ N(0, 1 / inputs) of shape [inputs, rank],   B = 0

    An adapter is a pytree of its own: it is what an algorithm trains, sends and averages, and the
    model's weights go beside it as an argument, see `apply_lora`.

    Args:
      key: of A.
      params: the weights, or their shapes.
      rank: r >= 1, at most the smaller side of each matrix.
      where: whether a matrix is adapted, by its path, names joined by "/"; default all that are named
        "kernel" and have two axes.

    Returns:
      A tree like `params` with a `LowRank` in the place of each adapted matrix and None elsewhere.

    Raises:
      TypeError, ValueError: naming the argument; a chosen leaf that is no matrix.

    References:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.
    """
    validation.typed_key("key", key)
    validation.model("params", params)
    validation.integer("rank", rank, low=1)
    validation.function(
        "where", where, "It says of a path whether that matrix is adapted.", takes=1
    )
    chosen = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if where(name_of(path)) and (where is not _kernels or leaf.ndim == 2)
    ]
    if not chosen:
        raise ValueError("where must choose at least one matrix of params, got none.")
    for path, leaf in chosen:
        if leaf.ndim != 2 or rank > min(leaf.shape):
            raise ValueError(
                f"rank must be at most the smaller side of a matrix, got {rank} for {name_of(path)} of "
                f"shape {leaf.shape}. Leave that leaf out with where=."
            )
    keys = dict(zip([path for path, _ in chosen], jax.random.split(key, len(chosen)), strict=True))

    def adapter(path: Any, leaf: Array) -> LowRank | None:
        if path not in keys:
            return None
        inputs, outputs = leaf.shape
        down = jax.random.normal(keys[path], (inputs, rank), leaf.dtype) / inputs**0.5
        return LowRank(down, jnp.zeros((rank, outputs), leaf.dtype))

    return jax.tree_util.tree_map_with_path(adapter, params)


def apply_lora(
    params: Params, adapter: PyTree[LowRank], *, scale: float | Float[Array, ""] = 1.0
) -> Params:
    """The weights with an adapter in them, `W + scale A B`: for use, or to be merged for good.

    Args:
      params: the weights.
      adapter: from `lora`, trained.
      scale: of the change; traceable. LoRA's alpha / rank.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.model("params", params)
    validation.real("scale", scale, scalar=True)
    wanted: Any = jax.tree.structure(params)
    adapters, given = jax.tree.flatten(adapter, is_leaf=_stands_for_a_leaf)
    if given != wanted or not all(map(_stands_for_a_leaf, adapters)):
        raise TypeError(
            "adapter must be a tree like params of LowRank and None, got "
            f"{validation.shown(adapter)}. Make it with dflax.models.lora."
        )

    def changed(leaf: Array, own: LowRank | None) -> Array:
        if own is None:
            return leaf
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        change = jnp.matmul(own.down, own.up, preferred_element_type=wide)
        return (leaf.astype(wide) + jnp.asarray(scale, wide) * change).astype(leaf.dtype)

    leaves = map(changed, jax.tree.leaves(params), adapters)
    return jax.tree.unflatten(wanted, list(leaves))


def rank_mask(
    adapter: PyTree[LowRank], ranks: int | Int[AnyArray, "..."]
) -> PyTree[Float[Array, "..."]]:
    """Ones for the first components of an adapter, and zeros for the others.

        A B  becomes  A[:, :r] B[:r]      as  jax.tree.map(jnp.multiply, adapter, mask)

    Shapes stay, so that ranks may differ from matrix to matrix, client to client and step to step in
    one compiled program. Components outside the mask get no gradient. As the weights of a
    `dflax.aggregation.Weighted` message the mask makes means over those clients that have a component.

    Args:
      adapter: from `lora`, of rank R.
      ranks: r in [0, R] of all matrices, `[]`, or of each, `[P]`, in the order of the tree; traceable.

    Returns:
      A tree like `adapter` of float32 masks.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Cho et al., Heterogeneous LoRA for Federated Fine-tuning, arXiv 2401.06432.
    """
    fix = "Make one with dflax.models.lora."
    adapters = jax.tree.leaves(adapter, is_leaf=_is_low_rank)
    if not adapters or not all(map(_is_low_rank, adapters)):
        raise TypeError(
            f"adapter must be a tree of LowRank and None, got {validation.shown(adapter)}. {fix}"
        )
    most = min(own.down.shape[-1] for own in adapters)
    shape = (len(adapters),) if np.ndim(ranks) else ()
    given = validation.array("ranks", ranks, kind="integer", shape=shape, low=0, high=most)
    each = jnp.broadcast_to(jnp.asarray(given), (len(adapters),))
    numbered = iter(range(len(adapters)))

    def mask(own: LowRank) -> LowRank:
        there = jnp.arange(own.down.shape[-1]) < each[next(numbered)]
        there = there.astype(jnp.float32)
        return LowRank(
            jnp.broadcast_to(there, own.down.shape),
            jnp.broadcast_to(there[:, None], own.up.shape),
        )

    return jax.tree.map(mask, adapter, is_leaf=_is_low_rank)


def _is_low_rank(node: Any) -> bool:
    return isinstance(node, LowRank)


def _stands_for_a_leaf(node: Any) -> bool:
    return node is None or isinstance(node, LowRank)
