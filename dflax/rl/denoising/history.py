"""The last rewards of each prompt."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class History(NamedTuple):
    """The last rewards of each prompt.

    Attributes:
      rewards: `[P, size]`.
      written: `[P]` int32, how many there ever were.
    """

    rewards: Float[Array, "P size"]
    written: Int[Array, " P"]


def written(
    history: History, rewards: Float[Array, " B"], there: Array, prompts: Int[Array, " B"]
) -> History:
    """The history with the batch's rewards in it, in order; those that are not there stay outside."""
    count, size = history.rewards.shape
    own = (prompts[:, None] == jnp.arange(count)) & there[:, None]
    # How many of the same prompt came before, in this batch, and how many there are.
    before = (jnp.cumsum(own, axis=0) - own)[jnp.arange(len(prompts)), prompts]
    total = jnp.sum(own, axis=0)
    # Of more than the history holds the last ones stay; two writers of one place have no order.
    stays = there & (before >= total[prompts] - size)
    row = jnp.where(stays, prompts, count)
    place = (history.written[prompts] + before) % size
    kept = history.rewards.at[row, place].set(rewards.astype(history.rewards.dtype), mode="drop")
    return History(kept, history.written + total.astype(jnp.int32))


def statistics(values: Array, counted: Array, axis: int | None = None) -> tuple[Array, Array]:
    """Mean and deviation of those that count; 0 of none."""
    total = jnp.maximum(jnp.sum(counted, axis=axis, keepdims=True), 1.0)
    mean = jnp.sum(counted * values, axis=axis, keepdims=True) / total
    square = jnp.sum(counted * (values - mean) ** 2, axis=axis, keepdims=True) / total
    return mean, jnp.sqrt(square)
