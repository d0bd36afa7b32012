"""Keys and values of shared prefixes, kept by each location as far as its memory goes."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from dflax import validation


class PrefixCache(NamedTuple):
    """Which prefixes each location holds, from `prefix_cache`.

    Attributes:
      tokens: `[locations, prefixes]` int32, tokens of each that are held; 0 where it is not.
      used: `[locations, prefixes]` int32, when it was last used, a count of uses.
      uses: `[]` int32, uses so far.
    """

    tokens: Int[Array, "locations prefixes"]
    used: Int[Array, "locations prefixes"]
    uses: Int[Array, ""]


def prefix_cache(locations: int, prefixes: int) -> PrefixCache:
    """An empty cache.

    Args:
      locations: >= 1; one for a pool that all share, else one an instance.
      prefixes: >= 1, how many there are in all.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("locations", locations, low=1)
    validation.integer("prefixes", prefixes, low=1)
    nothing = jnp.zeros((locations, prefixes), jnp.int32)
    return PrefixCache(nothing, nothing, jnp.zeros((), jnp.int32))


def hits(
    cache: PrefixCache, prefix: Int[Array, ""], shared: Int[Array, ""], *, block: int = 1
) -> Int[Array, " locations"]:
    """Tokens of a request's prefix that each location holds: min(held, shared) in whole blocks.

    Args:
      cache: see `PrefixCache`.
      prefix: `[]` its number, -1 for none.
      shared: `[]` tokens of the prompt that are the prefix's.
      block: tokens of a block, >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _verify(cache, prefix, shared)
    validation.integer("block", block, low=1)
    held = jnp.minimum(cache.tokens[:, jnp.maximum(prefix, 0)], shared) // block * block
    return jnp.where(prefix >= 0, held, 0)


def kept(
    cache: PrefixCache,
    location: Int[Array, ""],
    prefix: Int[Array, ""],
    shared: Int[Array, ""],
    *,
    capacity: int | Int[Array, ""],
) -> PrefixCache:
    """The cache after a location has computed a prefix; those used longest ago leave it.

    A prefix longer than the capacity is not kept.

    Args:
      cache: see `PrefixCache`.
      location: `[]` where.
      prefix: `[]` its number, -1 for none.
      shared: `[]` its tokens.
      capacity: tokens that one location can hold, >= 1; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _verify(cache, prefix, shared)
    last = cache.tokens.shape[0] - 1
    validation.array("location", location, kind="integer", shape=(), low=0, high=last)
    validation.real("capacity", capacity, low=1, scalar=True)
    uses = cache.uses + 1
    place = jnp.maximum(prefix, 0)
    fits = (prefix >= 0) & (shared <= capacity) & (shared > 0)
    tokens, used = cache.tokens[location], cache.used[location]
    tokens = tokens.at[place].set(
        jnp.where(fits, jnp.maximum(tokens[place], shared), tokens[place])
    )
    used = used.at[place].set(jnp.where(fits, uses, used[place]))
    # What was used later, and the prefix itself, goes first: it stays while the sum fits.
    later = used[None, :] >= used[:, None]
    before = jnp.sum(jnp.where(later, tokens[None, :], 0), axis=1)
    tokens = jnp.where(before <= capacity, tokens, 0)
    return PrefixCache(
        cache.tokens.at[location].set(tokens), cache.used.at[location].set(used), uses
    )


def _verify(cache: PrefixCache, prefix: Int[Array, ""], shared: Int[Array, ""]) -> None:
    validation.instance("cache", cache, PrefixCache, "Make it with dflax.inference.prefix_cache.")
    last = cache.tokens.shape[1] - 1
    validation.array("prefix", prefix, kind="integer", shape=(), low=-1, high=last)
    most = validation.LARGEST_COUNT
    validation.array("shared", shared, kind="integer", shape=(), low=0, high=most)
