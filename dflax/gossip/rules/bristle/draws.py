"""Which of the models that a client hears it looks at: drawn by distance, or at random."""

import math
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.aggregation.rows.row_norms import row_norms
from dflax.algorithm import Params

Draw = Callable[
    [Float[Array, " k"], Bool[Array, " k"], Key[Array, ""]],
    tuple[Int[Array, " m"], Bool[Array, " m"]],
]
"""`(distances [k], present [k], key) -> (places [m], valid [m])`: m of the k neighbours, without
repetition, of which those that are not valid do not count."""


def prioritised(explore: float = 0.4, models: int = 10) -> Draw:
    """Mostly near models, a few far ones: so many from each third of the neighbours by distance.

        nearest third (1 - a)^2 m,   middle 2 a (1 - a) m,   farthest a^2 m          a = explore

    Numbers are rounded, halves up, so that they may add up to m - 1 or m + 1. Of k neighbours the first
    and the last third have floor(k / 3), the middle has the rest. A third that has fewer gives all.

    Args:
      explore: a in [0, 1], static: 0 looks at the nearest third alone, 1 at the farthest alone.
      models: m >= 1, static.

    Returns:
      A `Draw`. With a = 0.4 and m = 10 it takes 4, 5 and 2.

    Raises:
      TypeError, ValueError: naming the argument; a and m by which nobody is drawn.

    References:
      Verbraeken, de Vos and Pouwelse, Bristle, arXiv 2110.11006.
    """
    counts = counts_by_third(explore, models)

    def draw(
        distances: Float[Array, " k"], present: Bool[Array, " k"], key: Key[Array, ""]
    ) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
        return _drawn(thirds(distances, present), counts, key)

    return draw


def at_random(models: int = 10) -> Draw:
    """So many models uniformly at random, whatever their distance: the ablation of `prioritised`.

    Args:
      models: m >= 1, static. Where fewer are heard, all of them.

    Returns:
      A `Draw`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("models", models, low=1)

    def draw(
        distances: Float[Array, " k"], present: Bool[Array, " k"], key: Key[Array, ""]
    ) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
        return _drawn(jnp.where(present, 0, -1), (models,), key)

    return draw


def counts_by_third(explore: float, models: int) -> tuple[int, int, int]:
    """How many models `prioritised` takes of the nearest, the middle and the farthest third."""
    fix = "It sets how many are drawn, which is static: compile once for each value."
    if validation.is_traced(explore):
        raise TypeError(f"explore must be a number in [0, 1], got a traced value. {fix}")
    validation.probability("explore", explore, fix=fix)
    validation.integer("models", models, low=1)
    # As a decimal fraction, so that a half is a half.
    a = Fraction(float(explore)).limit_denominator(10**6)
    shares = ((1 - a) ** 2, 2 * a * (1 - a), a**2)
    low, middle, high = (math.floor(share * models + Fraction(1, 2)) for share in shares)
    if not low + middle + high:
        raise ValueError(
            f"models must be so many that one is drawn at least, got models={models} with "
            f"explore={explore}, of which no third gets one. Raise it."
        )
    return low, middle, high


def thirds(distances: Float[Array, " k"], present: Bool[Array, " k"]) -> Int[Array, " k"]:
    """The third of each neighbour by distance: 0 near, 1 middle, 2 far; -1 for who is absent."""
    rank = jnp.argsort(jnp.lexsort((distances, ~present)))
    count = jnp.sum(present, dtype=jnp.int32)
    third = jnp.where(rank < count // 3, 0, jnp.where(rank >= count - count // 3, 2, 1))
    return jnp.where(present, third, -1)


def distances_to(own: Params, others: Params) -> Float[Array, " k"]:
    """`|x_j - x|` over all parameters, of leaves `[...]` and `[k, ...]`."""

    def apart(mine: Array, theirs: Array) -> Array:
        wide = jnp.promote_types(mine.dtype, jnp.float32)
        return theirs.astype(wide) - mine.astype(wide)

    return row_norms(jax.tree.map(apart, own, others))


def _drawn(
    group: Int[Array, " k"], counts: tuple[int, ...], key: Key[Array, ""]
) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
    """`counts[g]` members of each group g, uniformly without replacement; fewer where it has fewer."""
    luck = jax.random.uniform(key, group.shape)
    drawn = [
        jax.lax.top_k(jnp.where(group == number, luck, -1), min(count, len(group)))
        for number, count in enumerate(counts)
    ]
    valid = jnp.concatenate([lucky >= 0 for lucky, _ in drawn])
    return jnp.concatenate([places for _, places in drawn]), valid
