"""Averages that keep the variance of weights: what independent models lose when they are averaged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message, mean
from dflax.algorithm import Metrics
from dflax.clients import against, weighted_mean

Choice = Callable[[Any, Array | jax.ShapeDtypeStruct], bool]
# Sums over a long axis run at memory speed as products with ones over pieces of this length.
PIECE = 1 << 10
# Deviations below so many units in the last place of the mean are rounding, not spread.
ROUNDING = 8


def kernels(path: Any, leaf: Array | jax.ShapeDtypeStruct) -> bool:
    """The leaves of a model with two axes or more: no biases, no scales and statistics of norms."""
    return leaf.ndim >= 2


def variances(stacked: PyTree[Array], choose: Choice = kernels) -> Float[Array, "m L"]:
    """The variance of every chosen weight tensor of every model.

        v[i, l] = mean over the entries of (w_il - mean w_il)^2             biased, two passes

    Args:
      stacked: models, leaves `[m, ...]`.
      choose: `(path, leaf) -> bool` on one model's leaves, static: which tensors count.

    Returns:
      `[m, L]`, one column per chosen leaf in the order of the tree; float32, or the widest dtype among
      them.
    """
    return jnp.stack([_moments(leaf)[1] for leaf in _chosen(stacked, choose)], axis=1)


def rescaled(
    mixed: PyTree[Array],
    target: Float[Array, "m L"],
    choose: Choice = kernels,
    *,
    strength: float | Float[Array, ""] = 1.0,
    epsilon: float | Float[Array, ""] = 0.0,
) -> tuple[PyTree[Array], Float[Array, "m L"]]:
    """Stretches every chosen tensor around its own mean until it has the wanted variance.

        s_il = sqrt((V_il + epsilon) / (var w_il + epsilon))
        w_il = mean w_il + (1 + strength (s_il - 1)) (w_il - mean w_il)

    A tensor whose entries are all equal stays as it is.

    Args:
      mixed: models, leaves `[m, ...]`.
      target: V, `[m, L]`, of the tensors that `choose` takes.
      choose: as in `variances`.
      strength: in [0, 1]; 0 changes nothing, 1 gives exactly the variance V. Factors above 1 compound
        from round to round until the weights overflow.
      epsilon: >= 0, weakens the correction of tensors whose variance is of its size.

    Returns:
      The models, and the factors `1 + strength (s_il - 1)`, `[m, L]`.
    """
    require_correction(choose, strength, epsilon)
    leaves, structure = jax.tree.flatten(mixed)
    places = _places(mixed, choose)
    factors = []
    for column, place in enumerate(places):
        leaf = leaves[place]
        center, variance = _moments(leaf)
        # The mean of equal entries is off by rounding, and so is their variance.
        kind = jnp.finfo(variance.dtype)
        noise = jnp.square(ROUNDING * kind.eps * center) + kind.tiny
        varies = variance > noise
        ratio = (target[:, column] + epsilon) / jnp.where(varies, variance + epsilon, 1.0)
        factor = jnp.where(varies, 1 + strength * (jnp.sqrt(ratio) - 1), 1.0)
        stretch, middle = against(factor, leaf), against(center, leaf)
        moved = middle + stretch * (leaf.astype(center.dtype) - middle)
        leaves[place] = moved.astype(leaf.dtype)
        factors.append(factor)
    return jax.tree.unflatten(structure, leaves), jnp.stack(factors, axis=1)


def variance_corrected(
    aggregator: Aggregator | None = None,
    *,
    choose: Choice = kernels,
    strength: float = 1.0,
    epsilon: float = 0.0,
) -> Aggregator:
    """An average of models whose weight tensors keep the mean variance of those averaged.

        x    = aggregator(x_1, ..., x_m; w)
        V_l  = sum_i w_i var(x_il) / sum_i w_i
        x_l  = mean x_l + sqrt(V_l / var x_l) (x_l - mean x_l)              per chosen tensor l

    The mean of m models with independent weights of variance v has variance v / m: averaged again
    and again, signals and gradients die out. The messages must be whole models (in
    `server.with_server`, a report whose message is the model): a change from a common model, as
    FedAvg sends, has another variance, and models that started together do not need this.

    Args:
      aggregator: the average; default the weighted mean.
      choose: which tensors are corrected, `(path, leaf) -> bool` on one model's leaves; default those
        with two axes or more.
      strength: in [0, 1], see `rescaled`; traceable.
      epsilon: >= 0, see `rescaled`; traceable.

    Returns:
      An `Aggregator`; the metric `variance_scale` is the mean factor over the chosen tensors.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Tian, Al-Ars, Kitsak and Hofstee, Vanishing Variance Problem in Fully Decentralized
      Neural-Network Systems, arXiv 2404.04616.
    """
    inner = mean() if aggregator is None else aggregator
    validation.instance("aggregator", inner, Aggregator, "For example dflax.aggregation.mean().")
    require_correction(choose, strength, epsilon)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        average, state, metrics = inner.apply(messages, weights, state, combining)
        require_choice(messages, choose)
        # Whoever did not report may hold anything; weight 0 times NaN would be NaN.
        spread = jnp.where(weights[:, None] > 0, variances(messages, choose), 0)
        target = weighted_mean(spread, weights)[None]
        one = jax.tree.map(lambda leaf: leaf[None], average)
        corrected, factors = rescaled(one, target, choose, strength=strength, epsilon=epsilon)
        corrected = jax.tree.map(lambda leaf: leaf[0], corrected)
        return corrected, state, metrics | {"variance_scale": factors.mean()}

    return Aggregator(inner.init, apply)


def require_correction(choose: Choice, strength: Any, epsilon: Any) -> None:
    """Refuse settings of a correction that are out of range."""
    fix = "Say (path, leaf) -> bool, as aggregation.kernels does."
    validation.function("choose", choose, fix, takes=2)
    fix = "Factors beyond the target compound from round to round."
    validation.real("strength", strength, low=0.0, high=1.0, scalar=True, fix=fix)
    validation.real("epsilon", epsilon, low=0.0, scalar=True)


def require_choice(stacked: PyTree[Array], choose: Choice) -> None:
    """Refuse models of which no tensor is chosen.

    Raises:
      ValueError: there is nothing to correct.
    """
    if not _places(stacked, choose):
        shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(stacked)]
        raise ValueError(
            f"choose must take at least one tensor of the model, got none of shapes {shapes}. The "
            "default takes those with two axes or more; pass lambda path, leaf: True for all. What a "
            "method marks gossip.Uncorrected cannot be chosen: put the correction around "
            "gossip.sampled and partitioned, and use none with dispfl, whose means are ratios."
        )


def _places(stacked: PyTree[Array], choose: Choice) -> list[int]:
    validation.function("choose", choose)
    flat = jax.tree_util.tree_leaves_with_path(stacked)
    one = [(path, jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)) for path, leaf in flat]
    return [place for place, (path, leaf) in enumerate(one) if choose(path, leaf)]


def _chosen(stacked: PyTree[Array], choose: Choice) -> list[Array]:
    leaves = jax.tree.leaves(stacked)
    return [leaves[place] for place in _places(stacked, choose)]


def _moments(leaf: Array) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Mean and biased variance of every row's entries, in float32 or in the leaf's wider dtype."""
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    rows = leaf.reshape(leaf.shape[0], -1).astype(wide)
    center = _sum(rows) / rows.shape[1]
    return center, _sum(jnp.square(rows - center[:, None])) / rows.shape[1]


def _sum(rows: Float[Array, "m d"]) -> Float[Array, " m"]:
    count, width = rows.shape
    whole = width // PIECE * PIECE
    ones = jnp.ones(PIECE, rows.dtype)
    pieces = rows[:, :whole].reshape(count, -1, PIECE)
    total = jnp.matmul(pieces, ones, precision=jax.lax.Precision.HIGHEST).sum(1)
    return total + rows[:, whole:].sum(1)
