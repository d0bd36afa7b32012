"""The norms of messages over all their parameters, and messages scaled by a factor each."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dflax.aggregation.aggregator import Message
from dflax.aggregation.rows.distances import finite_rows
from dflax.clients import against

# Between these a sum of squares has lost none that matters, of as many numbers as fit in a memory.
SMALL, LARGE = 1e-18, 1e37


def row_norms(
    messages: Message,
    centre: Message | None = None,
    present: Bool[Array, " m"] | None = None,
) -> Float[Array, " m"]:
    """`|x_i - c|`, all leaves `[m, ...]` together, in float32 or wider; without overflow on the way.

    Messages are read once, and nothing of their size is made, unless a square is so large or so small
    that it may have been lost. The length of a message that is not finite is not finite.

    Args:
      messages: x, leaves `[m, ...]`.
      centre: c, leaves `[...]`; None for 0.
      present: whose lengths will be read; None for all.
    """
    leaves = jax.tree.leaves(messages)
    wide = jnp.result_type(jnp.float32, *leaves)

    def away(leaves: list[Array], centre: Message | None) -> list[Array]:
        rows = [leaf.reshape(len(leaf), -1).astype(wide) for leaf in leaves]
        if centre is None:
            return rows
        middle = [one.reshape(1, -1).astype(wide) for one in jax.tree.leaves(centre)]
        return [x - c for x, c in zip(rows, middle, strict=True)]

    def scaled(leaves: list[Array], centre: Message | None) -> Float[Array, " m"]:
        flat = away(leaves, centre)
        most = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x), 1, initial=0) for x in flat])
        scale = jnp.where(most > 0, most, 1)[:, None]
        return most * jnp.sqrt(sum(jnp.sum(jnp.square(x / scale), axis=1) for x in flat))

    squares = sum(jnp.sum(jnp.square(x), axis=1) for x in away(leaves, centre))
    # A row of zeros has no square to lose, but cannot be told from one whose squares were lost.
    kept = (squares > SMALL) & (squares < LARGE)
    kept = jnp.all(kept if present is None else kept | ~present)
    return jax.lax.cond(kept, lambda *_: jnp.sqrt(squares), scaled, leaves, centre)


def row_products(messages: Message, message: Message) -> Float[Array, " m"]:
    """`<x_i, y>` over all leaves, `[m, ...]` with `[...]`, in float32 or wider."""

    def of(leaf: Array, one: Array) -> Array:
        wide = jnp.result_type(jnp.float32, leaf, one)
        rows = leaf.reshape(len(leaf), -1).astype(wide)
        return jnp.matmul(rows, one.reshape(-1).astype(wide), precision=jax.lax.Precision.HIGHEST)

    return sum(jax.tree.leaves(jax.tree.map(of, messages, message)), jnp.float32(0))


def scaled_rows(messages: Message, factors: Float[Array, " m"]) -> Message:
    """`factor_i x_i`, in the leaves' own dtype."""

    def scaled(leaf: Array) -> Array:
        wide = jnp.promote_types(leaf.dtype, factors.dtype)
        return (leaf.astype(wide) * against(factors.astype(wide), leaf)).astype(leaf.dtype)

    return jax.tree.map(scaled, messages)


def who_counts(
    messages: Message, weights: Float[Array, " m"]
) -> tuple[Bool[Array, " m"], Float[Array, ""]]:
    """Who reported finite numbers only, and how many that reported did not."""
    finite, reported = finite_rows(messages), weights > 0
    return finite & reported, jnp.sum(reported & ~finite).astype(jnp.float32)
