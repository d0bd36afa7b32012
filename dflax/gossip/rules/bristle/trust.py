"""How much a client trusts another's model, class by class, from F1 scores on its own test set."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Scoring(NamedTuple):
    """How differences of F1 become weights; all traceable.

    Attributes:
      better: exponent, plus the own F1, of classes that the other knows better.
      worse: the same of classes that it knows worse.
      bound: the lowest score of a single class is its negative.
      scale: of the logistic curve from scores to weights.
    """

    better: float | Float[Array, ""] = 3.0
    worse: float | Float[Array, ""] = 4.0
    bound: float | Float[Array, ""] = 100.0
    scale: float | Float[Array, ""] = 100.0


class Trust(NamedTuple):
    """The weights of m models.

    Attributes:
      familiar: `[m, C]` of each familiar class's column; 0 where the class is not selected.
      foreign: `[m]` of all foreign columns.
    """

    familiar: Float[Array, "m C"]
    foreign: Float[Array, " m"]


def trust(
    own: Float[Array, " C"],
    theirs: Float[Array, "m C"],
    familiar: Bool[Array, " C"],
    common: Int[Array, " m"],
    scoring: Scoring,
) -> Trust:
    """The weights of m models from their F1 scores.

        a_jc = certainty_j weight(max(-bound, score_jc))         c selected of j
        b_j  = certainty_j weight(sum of score_jc over the selected c)

    Args:
      own: F1 of the own model, class by class.
      theirs: F1 of the others.
      familiar: the client's own classes.
      common: how many of them each other client owns as well.
      scoring: see `Scoring`.

    Returns:
      A `Trust`.
    """
    chosen = selected(theirs, familiar, common)
    sure = certainty(theirs, chosen)
    scores = score(own, theirs, scoring)
    bounded = jnp.maximum(-jnp.asarray(scoring.bound, scores.dtype), scores)
    by_class = sure[:, None] * weight(bounded, scoring.scale)
    over_all = weight(jnp.sum(jnp.where(chosen, scores, 0), 1), scoring.scale)
    return Trust(jnp.where(chosen, by_class, 0), sure * over_all)


def selected(
    theirs: Float[Array, "m C"], familiar: Bool[Array, " C"], common: Int[Array, " m"]
) -> Bool[Array, "m C"]:
    """The familiar classes that each model knows best, as many as its owner has in common.

    Of equal F1 the lower class number comes first.
    """
    order = jnp.argsort(jnp.where(familiar, -theirs, jnp.inf), axis=1)
    return (jnp.argsort(order, axis=1) < common[:, None]) & familiar


def certainty(theirs: Float[Array, "m C"], chosen: Bool[Array, "m C"]) -> Float[Array, " m"]:
    """`max(0, mean - std)` of the F1 of each model's selected classes; 0 where none is selected."""
    count = jnp.maximum(jnp.sum(chosen, 1), 1).astype(theirs.dtype)
    mean = jnp.sum(jnp.where(chosen, theirs, 0), 1) / count
    apart = jnp.where(chosen, theirs - mean[:, None], 0)
    deviation = jnp.sqrt(jnp.sum(jnp.square(apart), 1) / count)
    return jnp.maximum(mean - deviation, 0)


def score(
    own: Float[Array, " C"], theirs: Float[Array, "m C"], scoring: Scoring
) -> Float[Array, "m C"]:
    """`d^(better + F)` where the other's F1 is above the own F, else `-d^(worse + F)`: see `bristle`."""
    gap = 10 * jnp.abs(theirs - own)
    return jnp.where(theirs > own, gap ** (scoring.better + own), -(gap ** (scoring.worse + own)))


def weight(score: Float[Array, "..."], scale: float | Array = 100.0) -> Float[Array, "..."]:
    """`max(0, 10 / (1 + exp(-score / scale)) - 4)`: 1 at score 0, at most 6, 0 from some score down."""
    # Sums of scores are unbounded, and the exponential of a large one is infinite.
    steep = jnp.clip(score / scale, -50, 50)
    return jnp.maximum(10 / (1 + jnp.exp(-steep)) - 4, 0)
