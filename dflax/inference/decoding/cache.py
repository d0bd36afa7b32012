"""Key-value caches: a row of tokens for every slot, each with a length of its own."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.models.transformer import TransformerLM

# Tokens that attention takes at a time; a cache's length is a multiple.
BLOCK = 64


class Cache(NamedTuple):
    """Keys and values of the tokens that S slots have seen; a slot serves one request at a time.

    Attributes:
      keys: `[layers, S, M, heads, width]`.
      values: of the same shape.
      lengths: `[S]`, tokens seen; what lies beyond them is never read.
    """

    keys: Float[Array, "layers S M heads width"]
    values: Float[Array, "layers S M heads width"]
    lengths: Int[Array, " S"]

    @property
    def slots(self) -> int:
        """S."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """M, the tokens for which a slot has room."""
        return self.keys.shape[2]


def empty_cache(model: TransformerLM, slots: int, length: int) -> Cache:
    """A cache without tokens.

    Args:
      model: whose layers, heads and width it has.
      slots: S >= 1.
      length: tokens of a slot, from 1 to the model's `length`; rounded up to a multiple of 64.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance(
        "model", model, TransformerLM, "For example dflax.models.TransformerLM(64)."
    )
    validation.integer("slots", slots, low=1)
    fix = f"The model's context has {model.length} tokens."
    validation.integer("length", length, low=1, high=model.length, fix=fix)
    room = -(-length // BLOCK) * BLOCK
    shape = (model.depth, slots, room, model.heads, model.width // model.heads)
    dtype = model.dtype or jnp.float32
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(slots, jnp.int32))


def share_prefix(cache: Cache, source: int, slots: Int[Array, " B"], tokens: int) -> Cache:
    """Slots begin with the first tokens of another one, whose keys and values are copied.

    A prompt's rest is then prefilled as if the whole had been.

    Args:
      cache: with at least `tokens` tokens in the slot `source`.
      source: the slot that holds the prefix.
      slots: `[B]`, others, which forget what they held.
      tokens: of the prefix, in [1, M].

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _check_cache(cache)
    validation.integer("source", source, low=0, high=cache.slots - 1)
    chosen_slots("slots", slots, cache)
    held = cache.lengths[source]
    most = cache.capacity if validation.is_traced(held) else int(held)
    validation.integer("tokens", tokens, low=1, high=most, fix="The source holds no more.")
    rows = jnp.asarray(slots)
    return Cache(
        cache.keys.at[:, rows, :tokens].set(cache.keys[:, source, None, :tokens]),
        cache.values.at[:, rows, :tokens].set(cache.values[:, source, None, :tokens]),
        cache.lengths.at[rows].set(tokens),
    )


def release(cache: Cache, slots: Int[Array, " B"]) -> Cache:
    """Slots forget their tokens and are free for other requests.

    Args:
      cache: any.
      slots: `[B]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _check_cache(cache)
    chosen_slots("slots", slots, cache)
    return cache._replace(lengths=cache.lengths.at[jnp.asarray(slots)].set(0))


def chosen_slots(name: str, slots: Int[Array, " B"], cache: Cache) -> None:
    """Refuse numbers of slots that the cache does not have, and one given twice."""
    given = validation.array(name, slots, kind="integer", shape=("B",), low=0, high=cache.slots - 1)
    if not validation.is_traced(given) and len(set(given.tolist())) < len(given):
        raise ValueError(f"{name} must be different slots, got {validation.shown(given)}.")


def _check_cache(cache: Cache) -> None:
    validation.instance("cache", cache, Cache, "Make it with dflax.inference.empty_cache.")
