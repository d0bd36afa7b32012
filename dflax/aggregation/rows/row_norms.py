"""The norms of messages over all their parameters, and messages scaled by a factor each."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dflax.aggregation.aggregator import Message
from dflax.aggregation.rows.distances import finite_rows
from dflax.clients import against, select


def row_norms(messages: Message) -> Float[Array, " m"]:
    """`|x_i|`, all leaves `[m, ...]` together, in float32 or wider; without overflow on the way."""
    leaves = jax.tree.leaves(messages)
    wide = jnp.result_type(jnp.float32, *leaves)
    flat = [leaf.reshape(len(leaf), -1).astype(wide) for leaf in leaves]
    most = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x), 1, initial=0) for x in flat])
    scale = jnp.where(most > 0, most, 1)[:, None]
    return most * jnp.sqrt(sum(jnp.sum(jnp.square(x / scale), axis=1) for x in flat))


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


def finite_only(
    messages: Message, weights: Float[Array, " m"]
) -> tuple[Message, Bool[Array, " m"], Float[Array, ""]]:
    """Zeros in the place of messages that are absent or not finite, who is left, how many were not."""
    finite, reported = finite_rows(messages), weights > 0
    present = finite & reported
    nothing = jax.tree.map(jnp.zeros_like, messages)
    dropped = jnp.sum(reported & ~finite).astype(jnp.float32)
    return select(present, messages, nothing), present, dropped
