"""Pruning of a client's examples: the share with the largest scores is kept, with static shapes."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.data.dataset import Batch

# 0.29 * 100 is 28.999998 in float32.
ROUNDING = 1e-6


def el2n(scores: Float[Array, "B C"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """How wrong a model is on each example: `| softmax(scores) - onehot(label) |_2`, in [0, sqrt 2].

    Args:
      scores: of the classes.
      labels: in [0, C).

    Returns:
      `[B]`, float32 or wider.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Paul et al., Deep Learning on a Data Diet, arXiv 2107.07075.
    """
    if jnp.ndim(scores) != 2 or jnp.shape(labels) != jnp.shape(scores)[:1]:
        raise ValueError(
            "scores must have shape [B, C] for labels [B], got "
            f"{jnp.shape(scores)} and {jnp.shape(labels)}."
        )
    wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    shares = jax.nn.softmax(wide, axis=-1)
    return jnp.linalg.norm(
        shares - jax.nn.one_hot(labels, wide.shape[-1], dtype=wide.dtype), axis=-1
    )


def kept_of(share: float | Float[Array, ""], examples: Any) -> Any:
    """How many of so many examples are kept: floor(share * examples), at least 1.

    Products within 1e-6 of the next integer, relatively, count as that integer.
    """
    if validation.is_traced(share) or validation.is_traced(examples):
        exact = jnp.asarray(share, jnp.float32) * jnp.asarray(examples, jnp.float32)
        return jnp.maximum(jnp.floor(exact * (1 + ROUNDING)), 1).astype(jnp.int32)
    return max(math.floor(float(share) * int(examples) * (1 + ROUNDING)), 1)


def largest_scores(
    scores: Float[Array, " P"], present: Bool[Array, " P"], count: Int[Array, ""]
) -> Bool[Array, " P"]:
    """Which entries are among the `count` largest of those that are present; the first of equals."""
    order = jnp.argsort(jnp.where(present, -scores, jnp.inf), stable=True)
    ranks = jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(order.size, dtype=jnp.int32))
    return present & (ranks < count)


def dealt(
    examples: Int[Array, " P"], kept: Bool[Array, " P"], key: Key[Array, ""], steps: int, width: int
) -> Int[Array, "K B"]:
    """The kept examples in random order as K minibatches of B, filled up with -1.

    Args:
      examples: indices into a data set.
      kept: at most K B of them.
      key: of the order.
      steps: K.
      width: B.
    """
    places = jnp.where(kept, jax.random.uniform(key, kept.shape), 2.0)
    order = jnp.argsort(places)[: steps * width]
    listed = jnp.where(kept[order], examples[order], -1)
    return jnp.pad(listed, (0, steps * width - order.size), constant_values=-1).reshape(
        steps, width
    )


class Filled(NamedTuple):
    """A data set in which an index of -1 is padding, which the batch's mask leaves out.

    Attributes:
      data: a `Dataset`.
    """

    data: Any

    def fetch(self, indices: Int[Array, " B"], key: Key[Array, ""] | None = None) -> Batch:
        """The minibatch, decoded, with its mask."""
        batch = self.data.fetch(jnp.maximum(indices, 0), key)
        mask = (indices >= 0).astype(jnp.float32)
        return batch._replace(mask=mask if batch.mask is None else mask * batch.mask)
