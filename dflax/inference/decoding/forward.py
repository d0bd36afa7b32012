"""A transformer's layers over a cache: new tokens see what their slot has seen, and one another."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from dflax.algorithm import Params
from dflax.inference.decoding.cache import BLOCK, Cache
from dflax.models.transformer import TransformerLM


class Place(NamedTuple):
    """Where new tokens of a batch belong.

    Attributes:
      slots: `[B]`.
      start: `[B]`, tokens that the slot has seen.
      counts: `[B]`, how many of the L new ones count; the others are padding.
    """

    slots: Int[Array, " B"]
    start: Int[Array, " B"]
    counts: Int[Array, " B"]


def forward(
    model: TransformerLM, params: Params, cache: Cache, tokens: Int[Array, "B L"], place: Place
) -> tuple[Float[Array, "B V"], Cache]:
    """Logits after the last new token of each row, and the cache with the new ones in it."""
    offsets = jnp.arange(tokens.shape[1])
    positions = place.start[:, None] + offsets
    counted = offsets < place.counts[:, None]
    embedding = nn.Embed(model.vocabulary, model.width, dtype=model.dtype)
    table = {"params": params["embedding"]}
    x: Any = embedding.apply(table, tokens)
    x = x + params["positions"].astype(x.dtype).at[positions].get(mode="clip")
    keys, values = cache.keys, cache.values
    for layer, weights in enumerate(_blocks(model, params)):
        query, key, value = _projected(model, weights, x)
        # Out of the cache's bounds is nowhere: padding leaves no trace.
        to = (layer, place.slots[:, None], jnp.where(counted, positions, cache.capacity))
        keys = keys.at[to].set(key.astype(keys.dtype), mode="drop")
        values = values.at[to].set(value.astype(values.dtype), mode="drop")
        x = _finished(model, weights, x, attended(query, keys, values, layer, place))
    last = jnp.maximum(place.counts - 1, 0)
    x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    x = _norm(model, params["LayerNorm_0"], x)
    logits: Any
    if model.tied:
        logits = embedding.apply(table, x, method="attend")
    else:
        logits = nn.Dense(model.vocabulary, use_bias=False, dtype=model.dtype).apply(
            {"params": params["head"]}, x
        )
    lengths = cache.lengths.at[place.slots].add(place.counts)
    return logits, Cache(keys, values, lengths)


def attended(
    query: Float[Array, "B L H D"],
    keys: Float[Array, "layers S M H D"],
    values: Float[Array, "layers S M H D"],
    layer: int,
    place: Place,
) -> Float[Array, "B L H D"]:
    """softmax(q k^T / sqrt(D)) v of each slot, a block of its own tokens at a time.

    The sums over blocks are those of a softmax whose largest score is not known yet. A slot takes as
    many blocks as it has tokens, so time grows with the sum of contexts, not with the longest one.
    """
    length, heads, width = query.shape[1:]
    offsets, within = jnp.arange(length), jnp.arange(BLOCK)

    def one(row: tuple[Array, Array, Array, Array]) -> Float[Array, "L H D"]:
        asked, slot, start, count = row
        asked = jnp.swapaxes(asked, 0, 1) / width**0.5

        def block(number: Int[Array, ""], carry: tuple[Array, Array, Array]) -> tuple:
            largest, total, mixed = carry
            at = (layer, slot, number * BLOCK, 0, 0)
            key = jax.lax.dynamic_slice(keys, at, (1, 1, BLOCK, heads, width))[0, 0]
            value = jax.lax.dynamic_slice(values, at, (1, 1, BLOCK, heads, width))[0, 0]
            seen: Bool[Array, "L M"] = number * BLOCK + within <= (start + offsets)[:, None]
            scores = jnp.einsum("hld,mhd->hlm", asked, key, preferred_element_type=jnp.float32)
            scores = jnp.where(seen, scores, -jnp.inf)
            higher = jnp.maximum(largest, jnp.max(scores, axis=-1))
            weights = jnp.exp(scores - higher[..., None])
            kept = jnp.exp(largest - higher)
            total = total * kept + jnp.sum(weights, axis=-1)
            added = jnp.einsum(
                "hlm,mhd->hld",
                weights.astype(value.dtype),
                value,
                preferred_element_type=jnp.float32,
            )
            return higher, total, mixed * kept[..., None] + added

        # The first block holds token 0, which every new one sees: no score stays at -inf.
        carry = (
            jnp.full((heads, length), jnp.finfo(jnp.float32).min),
            jnp.zeros((heads, length)),
            jnp.zeros((heads, length, width)),
        )
        blocks = jnp.minimum(-(-(start + count) // BLOCK), keys.shape[2] // BLOCK)
        _, total, mixed = jax.lax.fori_loop(0, jnp.maximum(blocks, 1), block, carry)
        return jnp.swapaxes(mixed / total[..., None], 0, 1).astype(query.dtype)

    return jax.lax.map(one, (query, place.slots, place.start, place.counts))


def _blocks(model: TransformerLM, params: Params) -> list[Any]:
    """Each layer's weights, also where training kept them stacked."""
    if model.scan_blocks:
        stacked = params["blocks"]
        return [jax.tree.map(operator.itemgetter(i), stacked) for i in range(model.depth)]
    return [params[f"Block_{i}"] for i in range(model.depth)]


def _projected(
    model: TransformerLM, weights: Any, x: Float[Array, "B L W"]
) -> tuple[Array, Array, Array]:
    """Queries, keys and values, `[B, L, H, D]` each."""
    normed = _norm(model, weights["LayerNorm_0"], x)
    joint = _dense(model, weights["query_key_value"], normed)
    joint = joint.reshape(*x.shape[:2], 3, model.heads, model.width // model.heads)
    return joint[:, :, 0], joint[:, :, 1], joint[:, :, 2]


def _finished(
    model: TransformerLM, weights: Any, x: Float[Array, "B L W"], mixed: Float[Array, "B L H D"]
) -> Float[Array, "B L W"]:
    """What of a block comes after attention."""
    x = x + _dense(model, weights["projection"], mixed.reshape(x.shape))
    hidden = _dense(model, weights["Dense_0"], _norm(model, weights["LayerNorm_1"], x))
    return x + _dense(model, weights["Dense_1"], nn.gelu(hidden))


def _dense(model: TransformerLM, weights: Any, x: Array) -> Array:
    features = weights["kernel"].shape[-1]
    made: Any = nn.Dense(features, dtype=model.dtype).apply({"params": weights}, x)
    return made


def _norm(model: TransformerLM, weights: Any, x: Array) -> Array:
    made: Any = nn.LayerNorm(dtype=model.dtype).apply({"params": weights}, x)
    return made
