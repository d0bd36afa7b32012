"""Low-rank adapters: a small tree beside a model, trained in its place."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.data.dataset import AnyArray
from dflax.models.split.low_rank import Adapter, LowRank, Singular, is_adapter
from dflax.parts import Chooser, name_of


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

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> params = {"dense": {"kernel": jnp.zeros((6, 4)), "bias": jnp.zeros(4)}}
      >>> adapter = dx.models.lora(jax.random.key(0), params, rank=2)
      >>> [leaf.shape for leaf in jax.tree.leaves(adapter)]
      [(6, 2), (2, 4)]

    References:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.
    """

    def adapter(key: Key[Array, ""], leaf: Array) -> LowRank:
        inputs, outputs = leaf.shape
        down = jax.random.normal(key, (inputs, rank), leaf.dtype) / inputs**0.5
        return LowRank(down, jnp.zeros((rank, outputs), leaf.dtype))

    return _adapters(adapter, key, params, rank, where)


def svd_lora(
    key: Key[Array, ""], params: Params, rank: int, where: Chooser = _kernels
) -> PyTree[Singular]:
    """An adapter in the form of a singular value decomposition, which changes nothing yet.

        W becomes W + scale P diag(E) Q,   P [inputs, R], Q [R, outputs] orthonormal,   E = 0

    P and Q are the orthonormal factors of Gaussian matrices. What keeps them orthonormal in training is
    `orthogonality`. For a rank r < R the first r components count, see `rank_mask`.

    Args:
      key: of P and Q.
      params: the weights, or their shapes.
      rank: R >= 1, at most the smaller side of each matrix.
      where: as for `lora`.

    Returns:
      A tree like `params` with a `Singular` in the place of each adapted matrix and None elsewhere.

    Raises:
      TypeError, ValueError: naming the argument; a chosen leaf that is no matrix.

    References:
      Zhang et al., AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, arXiv
      2303.10512.
    """

    def adapter(key: Key[Array, ""], leaf: Array) -> Singular:
        inputs, outputs = leaf.shape
        left_key, right_key = jax.random.split(key)
        left = _orthonormal(left_key, inputs, rank).astype(leaf.dtype)
        right = _orthonormal(right_key, outputs, rank).T.astype(leaf.dtype)
        return Singular(left, jnp.zeros(rank, leaf.dtype), right)

    return _adapters(adapter, key, params, rank, where)


def _orthonormal(key: Key[Array, ""], rows: int, columns: int) -> Float[Array, "rows columns"]:
    return jnp.linalg.qr(jax.random.normal(key, (rows, columns)))[0]


def _adapters(
    make: Callable[[Key[Array, ""], Array], Adapter],
    key: Key[Array, ""],
    params: Params,
    rank: int,
    where: Chooser,
) -> PyTree[Adapter]:
    """A tree like the weights with what `make` makes of each chosen matrix, and None elsewhere."""
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

    def adapter(path: Any, leaf: Array) -> Adapter | None:
        return make(keys[path], leaf) if path in keys else None

    return jax.tree_util.tree_map_with_path(adapter, params)


def apply_lora(
    params: Params, adapter: PyTree[Adapter], *, scale: float | Float[Array, ""] = 1.0
) -> Params:
    """The weights with an adapter in them, `W + scale A B`: for use, or to be merged for good.

    Args:
      params: the weights.
      adapter: from `lora` or `svd_lora`, trained.
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
            "adapter must be a tree like params of LowRank or Singular and None, got "
            f"{validation.shown(adapter)}. Make it with dflax.models.lora or svd_lora."
        )

    def changed(leaf: Array, own: Adapter | None) -> Array:
        if own is None:
            return leaf
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        moved = leaf.astype(wide) + jnp.asarray(scale, wide) * own.change(wide)
        return moved.astype(leaf.dtype)

    leaves = map(changed, jax.tree.leaves(params), adapters)
    return jax.tree.unflatten(wanted, list(leaves))


def rank_mask(
    adapter: PyTree[Adapter], ranks: int | Int[AnyArray, "..."]
) -> PyTree[Float[Array, "..."]]:
    """Ones for the first components of an adapter, and zeros for the others.

        A B  becomes  A[:, :r] B[:r]      as  jax.tree.map(jnp.multiply, adapter, mask)

    Shapes stay, so that ranks may differ from matrix to matrix, client to client and step to step in
    one compiled program. Components outside the mask get no gradient. As the weights of a
    `dflax.aggregation.Weighted` message the mask makes means over those clients that have a component.

    Args:
      adapter: from `lora` or `svd_lora`, of rank R.
      ranks: r in [0, R] of all matrices, `[]`, or of each, `[P]`, in the order of the tree; traceable.

    Returns:
      A tree like `adapter` of float32 masks.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Cho et al., Heterogeneous LoRA for Federated Fine-tuning, arXiv 2401.06432.
    """
    adapters = _every(adapter, Adapter, "LowRank or Singular")
    each = iter(_there(adapters, ranks))
    return jax.tree.map(lambda own: own.masked_by(next(each)), adapter, is_leaf=is_adapter)


def orthogonality(
    adapter: PyTree[Singular], ranks: int | Int[AnyArray, "..."] | None = None
) -> Float[Array, ""]:
    """How far the bases of the components in use are from orthonormal; 0 at the start.

        mean over matrices of |P_r^T P_r - I|_F^2 + |Q_r Q_r^T - I|_F^2

    P_r are the first r columns of P, Q_r the first r rows of Q.

    Args:
      adapter: from `svd_lora`, of rank R.
      ranks: r in [0, R], `[]` or `[P]` as for `rank_mask`; None for R; traceable.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhang et al., AdaLoRA, arXiv 2303.10512.
    """
    adapters = _every(adapter, Singular, "Singular")
    most = min(own.rank for own in adapters)
    masks = _there(adapters, most if ranks is None else ranks)

    def apart(rows: Array, there: Array) -> Array:
        wide = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
        away = wide @ wide.T - jnp.eye(len(rows), dtype=wide.dtype)
        return jnp.sum(jnp.square(there[:, None] * away * there))

    each = [
        apart(own.left.T, mask) + apart(own.right, mask)
        for own, mask in zip(adapters, masks, strict=True)
    ]
    return jnp.mean(jnp.stack(each))


def _every(adapter: Any, kind: Any, name: str) -> list[Any]:
    """The adapted matrices of a tree, in order."""
    adapters = jax.tree.leaves(adapter, is_leaf=is_adapter)
    if not adapters or not all(isinstance(own, kind) for own in adapters):
        raise TypeError(
            f"adapter must be a tree of {name} and None, got {validation.shown(adapter)}. Make one "
            "with dflax.models.lora or svd_lora."
        )
    return adapters


def _there(adapters: list[Any], ranks: Any) -> list[Float[Array, " R"]]:
    """For each matrix ones for the components in use."""
    most = min(own.rank for own in adapters)
    shape = (len(adapters),) if np.ndim(ranks) else ()
    given = validation.array("ranks", ranks, kind="integer", shape=shape, low=0, high=most)
    each = jnp.broadcast_to(jnp.asarray(given), (len(adapters),))
    return [
        (jnp.arange(own.rank) < each[place]).astype(jnp.float32)
        for place, own in enumerate(adapters)
    ]


def _stands_for_a_leaf(node: Any) -> bool:
    return node is None or is_adapter(node)
