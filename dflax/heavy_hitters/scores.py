"""How well the most frequent items were found."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from dflax import validation
from dflax.heavy_hitters.levels import Found, merged
from dflax.heavy_hitters.words import require_words


def most_frequent(items: UInt32[Array, "N W"], k: int) -> Found:
    """The k items that most users have, with their counts; of equal ones the smaller number first.

    Args:
      items: `[N, W]` uint32 (`as_words`), everybody's.
      k: >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = jnp.asarray(require_words("items", items))
    validation.integer("k", k, low=1, high=1 << 20)
    everyone = jnp.ones(given.shape[0])
    return merged(given, everyone, everyone > 0, k)


def f1(found: Found, truth: Found) -> Float[Array, ""]:
    """F1 = 2 P R / (P + R): precision and recall of the found items, whatever their order.

    Args:
      found: what was found.
      truth: what there is, for example `most_frequent(items, k)`.

    Raises:
      TypeError: no `Found`.
    """
    hits = jnp.sum(_is_found(found, truth))
    return 2 * hits / jnp.maximum(found.number + truth.number, 1)


def ncr(found: Found, truth: Found) -> Float[Array, ""]:
    """Normalised cumulative rank: the j-th of k true items scores k + 1 - j if it was found.

        NCR = sum of the scores of found items / (k (k + 1) / 2)

    Args:
      found: what was found.
      truth: what there is, the most frequent first.

    Raises:
      TypeError: no `Found`.
    """
    hits = _is_found(found, truth)
    score = jnp.maximum(truth.number - jnp.arange(hits.shape[0]), 0)
    return jnp.sum(jnp.where(hits, score, 0)) / jnp.maximum(score.sum(), 1)


def frequency_error(found: Found, truth: Found) -> Float[Array, ""]:
    """Mean |estimated count - true count| over the true items that were found; NaN if none was.

    Args:
      found: what was found.
      truth: what there is.

    Raises:
      TypeError: no `Found`.
    """
    same = _pairs(found, truth)
    apart = jnp.abs(found.counts[None] - truth.counts[:, None])
    return jnp.sum(jnp.where(same, apart, 0.0)) / jnp.sum(same)


def _pairs(found: Found, truth: Found) -> Bool[Array, "k j"]:
    validation.instance("found", found, Found, "For example the server's part of a state.")
    validation.instance("truth", truth, Found, "For example most_frequent(items, k).")
    same = jnp.all(truth.items[:, None] == found.items[None], axis=-1)
    rows: Int[Array, " k"] = jnp.arange(truth.items.shape[0])
    return same & (rows < truth.number)[:, None] & _there(found)


def _there(found: Found) -> Bool[Array, " k"]:
    return jnp.arange(found.items.shape[0]) < found.number


def _is_found(found: Found, truth: Found) -> Bool[Array, " k"]:
    return _pairs(found, truth).any(1)
