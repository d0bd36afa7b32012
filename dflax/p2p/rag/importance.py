"""How much each context of a prompt matters for the answer."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from dflax import validation


class Importance(NamedTuple):
    """A rule that looks at answers to prompts with contexts left out.

    Attributes:
      subsets: `(k, key) -> [z, k]` bool, which contexts each of z prompts keeps.
      values: `(subsets [z, k], same [z], present [k]) -> [k]`: `same` is 1 where the answer is that of
        the whole prompt; contexts that are not `present` get 0.
    """

    subsets: Callable[[int, Key[Array, ""]], Bool[Array, "z k"]]
    values: Callable[[Array, Array, Array], Float[Array, " k"]]


def leave_one_out(extra: int = 0) -> Importance:
    """Differences of means, shifted and scaled to a sum of 1.

        v_j = mean of s over subsets with j - mean of s over those without,
        phi_j = (v_j - min v) / sum_l (v_l - min v),      1 / m each where all are equal

    over all m subsets that leave one context out, and `extra` random ones. Without extra ones
    phi_j = (max s - s_j) / (m max s - sum s), with s_j the answer without context j.

    Args:
      extra: random subsets, >= 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("extra", extra, low=0)

    def subsets(k: int, key: Key[Array, ""]) -> Bool[Array, "z k"]:
        without = ~jnp.eye(k, dtype=bool)
        if not extra:
            return without
        return jnp.concatenate([without, jax.random.bernoulli(key, 0.5, (extra, k))])

    def values(kept: Array, same: Array, present: Array) -> Float[Array, " k"]:
        # A subset that leaves out only what is not there is the whole prompt, and none of the m.
        counted = jnp.any(~kept & present, axis=1).astype(jnp.float32)
        with_it = counted @ jnp.where(kept, same[:, None], 0.0)
        without = counted @ jnp.where(kept, 0.0, same[:, None])
        many, few = counted @ kept.astype(jnp.float32), counted @ (~kept).astype(jnp.float32)
        raw = with_it / jnp.maximum(many, 1.0) - without / jnp.maximum(few, 1.0)
        least = jnp.min(jnp.where(present, raw, jnp.inf))
        above = jnp.where(present, raw - least, 0.0)
        total = jnp.sum(above)
        even = present / jnp.maximum(jnp.sum(present), 1)
        # A tie up to rounding is a tie.
        return jnp.where(total > 1e-6, above / jnp.where(total > 1e-6, total, 1.0), even)

    return Importance(subsets, values)


def shapley() -> Importance:
    """Shapley's value of v(Z) = 1 if the answer to Z is that of the whole prompt, over all 2^k subsets.

    It sums to v(all) - v(none), is 0 for a context that changes nothing, and may be negative.
    """

    def subsets(k: int, key: Key[Array, ""]) -> Bool[Array, "z k"]:
        return jnp.asarray(_all_subsets(k))

    def values(kept: Array, same: Array, present: Array) -> Float[Array, " k"]:
        k = kept.shape[1]
        weights = _shapley_weights(k)
        # A context that is not there never changes an answer: its value is 0 by itself.
        return jnp.asarray(weights) @ same * present

    return Importance(subsets, values)


def _all_subsets(k: int) -> np.ndarray:
    return np.array(list(itertools.product([False, True], repeat=k)))


def _shapley_weights(k: int) -> np.ndarray:
    """`[k, 2^k]`: what the value of each subset counts for each context."""
    sizes = _all_subsets(k).sum(1)
    weights = np.zeros((k, 2**k), np.float32)
    for place, kept in enumerate(_all_subsets(k)):
        size = int(sizes[place])
        for j in range(k):
            before = size - 1 if kept[j] else size
            share = math.factorial(before) * math.factorial(k - before - 1) / math.factorial(k)
            weights[j, place] = share if kept[j] else -share
    return weights
