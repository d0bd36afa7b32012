"""Cosines between messages, and scores of those who are like nobody else."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from dflax.aggregation.rows.coordinates import sum_coordinates
from dflax.aggregation.rows.products import products
from dflax.aggregation.rows.row_norms import row_norms

# Pardoning compares likenesses above this.
LEAST = 1e-5


def row_cosines(
    stacked: PyTree[Array], present: Bool[Array, " m"] | None = None
) -> tuple[Float[Array, "m m"], Float[Array, " m"]]:
    """The cosines between m messages, leaves `[m, ...]`, and their lengths; without overflow on the way.

    Rows and columns of messages of length 0 are 0. Those of messages that are not present or not
    finite, or whose length is not, may hold anything.
    """
    norms = row_norms(stacked, present=present)
    inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)

    def of(values: Float[Array, "m c"], inverse: Float[Array, " m"]) -> Float[Array, "m m"]:
        return products(values * inverse[:, None].astype(values.dtype))

    found = sum_coordinates(of, stacked, inverse)
    return jnp.clip((found + found.T) / 2, -1, 1), norms


def cosines_of(gram: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """`G_ij / sqrt(G_ii G_jj)` of products, in [-1, 1]; 0 in the row and column of a vector 0."""
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
    return jnp.clip(inverse[:, None] * gram * inverse, -1, 1)


def similarity_scores(
    cosines: Float[Array, "m m"],
    known: Bool[Array, " m"],
    judged: Bool[Array, " m"] | None = None,
) -> Float[Array, " m"]:
    """FoolsGold's scores: 1 of who is like nobody else, 0 of those who are much like another.

        v_a = max(0, max over known b != a of c_ab) + 1e-5
        p_a = max(0, max over known b != a of c_ab min(1, v_a / v_b))                      pardoning
        y_a = (1 - p_a) / max over judged b of (1 - p_b)
        s_a = clip(ln(y_a / (1 - y_a)) + 1/2, 0, 1)

    Pardoning: who resembles somebody with a closer twin is not blamed for it. Where all judged ones are
    twins, every 1 - p is rounding and all scores are 0.

    Args:
      cosines: c, `[m, m]`; the diagonal is not looked at.
      known: who is compared.
      judged: who gets a score, among the known; the others only serve for comparison. None: all known.

    Returns:
      s, `[m]` in [0, 1], 0 of those who are not judged. It is (1, 0, 0) of the vectors (0, 1), (1, 0),
      (1, -1).

    References:
      Fung, Yoon and Beschastnikh, The Limitations of Federated Learning in Sybil Settings, RAID 2020,
      arXiv 1808.04866.
    """
    judged = known if judged is None else judged & known
    others = known[:, None] & known & ~jnp.eye(len(known), dtype=bool)
    likeness = jnp.where(others, cosines, 0)
    closest = likeness.max(1) + LEAST
    pardoned = (likeness * jnp.minimum(1, closest[:, None] / closest)).max(1)
    alone = jnp.where(judged, jnp.clip(1 - pardoned, 0, 1), 0)
    most = alone.max()
    differ = most > (1e-12 if cosines.dtype == jnp.float64 else 1e-5)
    shares = jnp.where(differ, alone / jnp.where(differ, most, 1), 0)
    # Beyond these bounds the score is 0 or 1 in any case.
    bounded = jnp.clip(shares, 0.01, 0.99)
    scores = jnp.clip(jnp.log(bounded / (1 - bounded)) + 0.5, 0, 1)
    return jnp.where(judged, scores, 0)
