"""Means in which every leaf of a message, or every row of a leaf, has a weight of its own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, mean
from dflax.algorithm import Metrics
from dflax.clients import against


class Weighted(NamedTuple):
    """A message that says which of its numbers count, and how much.

    Attributes:
      value: the message, floating-point leaves.
      weights: a tree prefix of `value`, >= 0. A leaf of it stands for the leaves of `value` below its
        place, and has their first axes: `()` for whole leaves, `(experts,)` for the rows of stacked
        experts, the shape of the leaf for a mask. Where it is 0 the value may be anything.
    """

    value: PyTree[Array]
    weights: PyTree[Float[Array, "..."]]


def weighted_by_leaf() -> Aggregator:
    """The mean over those who have something to say of a leaf, by what it counts with them.

        x = sum_i w_i a_i x_i / sum_i w_i a_i,    a = sum_i w_i a_i / sum_i w_i           leaf by leaf

    w_i are the clients' weights, a_i the weights in their messages: 0 for the experts that a client did
    not use, the layers that it does not have, the entries outside its mask. With equal a_i it is `mean`.

    Returns:
      An `Aggregator` of `Weighted` messages to one `Weighted` message. Where nobody's weight is above 0
      both are 0: as a message is a change, the server keeps its value there. Its state is ().

    Raises:
      TypeError: from `init` and `apply`, a message that is not `Weighted`.
      ValueError: weights that are no prefix of the values.
    """
    plain = mean()

    def init(message: Weighted) -> tuple[()]:
        require_weighted("message", message)
        return ()

    def apply(
        messages: Weighted, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Weighted, tuple[()], Metrics]:
        sums, state, metrics = plain.apply(weighted_sums(messages), weights, state, combining)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), messages)
        return ratios(sums, nothing), state, metrics

    return Aggregator(init, apply)


def weighted_sums(messages: Weighted) -> Weighted:
    """`(a x, a)` in float32 or wider, which may be added up or mixed by a matrix."""
    require_weighted("messages", messages)

    def times(weight: Array, leaf: Array) -> Array:
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        share = against(weight, leaf).astype(wide.dtype)
        return jnp.where(share > 0, share * wide, 0)

    weights = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32)),
        messages.weights,
    )
    return Weighted(_below(times, weights, messages.value), weights)


def ratios(sums: Weighted, otherwise: Weighted) -> Weighted:
    """`(sum of a x / sum of a, sum of a)`; where the latter is 0, the value of `otherwise`."""

    def over(total: Array, leaf: Array, own: Array) -> Array:
        there = against(total, leaf).astype(leaf.dtype)
        return jnp.where(there > 0, leaf / jnp.where(there > 0, there, 1), own).astype(own.dtype)

    weights = jax.tree.map(lambda new, old: new.astype(old.dtype), sums.weights, otherwise.weights)
    return Weighted(_below(over, sums.weights, sums.value, otherwise.value), weights)


def require_weighted(name: str, message: Any) -> None:
    """Refuse what is not `Weighted`.

    Raises:
      TypeError: another type, or weights that are no real numbers.
      ValueError: weights that are no tree prefix of the values.
    """
    fix = "Say what counts: aggregation.Weighted(value, weights), weights a tree prefix of value."
    validation.instance(name, message, Weighted, fix)
    for leaf in jax.tree.leaves(message.weights):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{name}.weights must hold real numbers, got {jnp.result_type(leaf)}. Of a mask take "
                "mask.astype(jnp.float32)."
            )
    try:
        jax.tree.map(lambda weight, below: (), message.weights, message.value)
    except ValueError as error:
        raise ValueError(
            f"{name}.weights must be a tree prefix of {name}.value, got "
            f"{jax.tree.structure(message.weights)} for {jax.tree.structure(message.value)}. {fix}"
        ) from error


def _below(function: Any, prefix: PyTree[Array], *trees: PyTree[Array]) -> PyTree[Array]:
    """`function(weight, *leaves)` for every leaf, with the weight that stands for it."""
    return jax.tree.map(
        lambda weight, *parts: jax.tree.map(lambda *leaves: function(weight, *leaves), *parts),
        prefix,
        *trees,
    )
