"""W-MSR: of each coordinate the extremes beyond one's own value are left out."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import against
from dflax.gossip.rules.neighbour_rule import Neighbourhood, NeighbourRule, stateless


def w_msr(f: int | Int[Array, ""]) -> NeighbourRule:
    """Weighted mean-subsequence-reduced: a mean without what lies farthest from oneself.

        x_i <- (w_ii x_i + sum_{j in R} w_ij x_j) / (w_ii + sum_{j in R} w_ij)

    R is what is left, in each coordinate by itself, of those heard: of the values above x_i without the
    f largest, of those below x_i without the f smallest; without all of them where they are fewer. Who
    has the value of x_i stays. With f = 0 it is the mean with the mixing's weights.

    Where among those whom anyone hears at most f are arbitrary, and the graph is (2 f + 1)-robust, the
    others agree on a value between their first ones. Every non-empty pair of disjoint sets of such a
    graph has a node in one of the two that hears 2 f + 1 others from outside.

    Example: heard are 0, 1, 2 and 50, the own value is 1, f = 1, all weights are equal. 50 and 0 are
    left out, and the mean of 1, 2 and the own 1 is 4/3.

    Args:
      f: how many are left out on each side, >= 0; it may be traced.

    Returns:
      A `NeighbourRule`; `left_out` is a metric, the share of the numbers heard that were left out.

    Raises:
      TypeError, ValueError: `f` is no such count.

    References:
      LeBlanc, Zhang, Koutsoukos and Sundaram, Resilient Asymptotic Consensus in Robust Networks, IEEE
      Journal on Selected Areas in Communications 31, 2013.
    """
    if not validation.is_traced(f):
        validation.integer("f", f, low=0)

    def apply(
        own: Params, others: Params, weights: Float[Array, " k"], here: Neighbourhood
    ) -> tuple[Params, Metrics]:
        heard = weights > 0

        def reduced(mine: Array, theirs: Array) -> tuple[Array, Array]:
            kept = near(mine, theirs, heard, f)
            wide = jnp.promote_types(mine.dtype, jnp.float32)
            shares = jnp.where(kept, against(weights, theirs), 0).astype(wide)
            # Differences: what is left out may be infinite, and staying shall be exact.
            changes = jnp.where(kept, theirs.astype(wide) - mine.astype(wide), 0)
            whole = here.own_weight.astype(wide) + shares.sum(0)
            change = (shares * changes).sum(0) / jnp.where(whole > 0, whole, 1)
            return (mine.astype(wide) + change).astype(mine.dtype), kept.sum()

        leaves, structure = jax.tree.flatten(own)
        found = [reduced(a, b) for a, b in zip(leaves, jax.tree.leaves(others), strict=True)]
        size = sum(leaf.size for leaf in leaves)
        count = jnp.maximum(heard.sum() * size, 1).astype(jnp.float32)
        kept = sum(number for _, number in found) / count
        mixed = jax.tree.unflatten(structure, [leaf for leaf, _ in found])
        return mixed, {"left_out": jnp.where(jnp.any(heard), 1 - kept, 0.0)}

    return stateless(apply)


def near(
    own: Float[Array, "..."],
    others: Float[Array, "k ..."],
    there: Bool[Array, " k"],
    f: int | Int[Array, ""],
) -> Bool[Array, "k ..."]:
    """Which of the others stay: not the f largest above own, not the f smallest below, entry by entry.

    Args:
      own: `[...]`.
      others: `[k, ...]`; NaN counts as the largest. Of equal ones the last is the largest.
      there: `[k]`, which of them count.
      f: how many are left out on each side.

    Returns:
      `[k, ...]` booleans, False where `there` is.
    """
    counts = against(there, others)
    # What is absent is sorted behind all that is there, the infinite too.
    most = jnp.finfo(others.dtype).max
    given = jnp.clip(jnp.where(jnp.isnan(others), most, others), -most, most)
    order = jnp.argsort(jnp.where(counts, given, jnp.inf), axis=0)
    rising = jnp.argsort(order, axis=0)
    falling = there.sum() - 1 - rising
    above, below = given > own, given < own
    return counts & ~(above & (falling < f)) & ~(below & (rising < f))
