"""How far a peer's order of the items is from the order by all benign clicks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.algorithm import Metrics
from dflax.p2p.g_rank.click_log import counts
from dflax.p2p.g_rank.g_rank import GRankState
from dflax.p2p.g_rank.ranking import Scorer, Search


def footrule(
    ours: Float[Array, " M"], theirs: Float[Array, " M"], matches: Bool[Array, " M"]
) -> Float[Array, ""]:
    """Spearman's footrule: sum over matching items of |place in our order - place in theirs|.

    Orders fall by value; the lower number stands first among equals.
    """
    return jnp.sum(
        jnp.where(matches, jnp.abs(_places(ours, matches) - _places(theirs, matches)), 0)
    )


def ndcg(
    scores: Float[Array, " M"], relevance: Float[Array, " M"], matches: Bool[Array, " M"]
) -> Float[Array, ""]:
    """Normalised discounted cumulative gain of the order by `scores`: DCG / largest DCG.

    DCG = sum over matching items of relevance / log2(2 + place); 1 where nothing is relevant.
    """
    gains = jnp.where(matches, relevance, 0.0)
    found = jnp.sum(gains / jnp.log2(2.0 + _places(scores, matches)))
    best = jnp.sum(gains / jnp.log2(2.0 + _places(relevance, matches)))
    return jnp.where(best > 0, found / jnp.where(best > 0, best, 1.0), 1.0)


def rank_distance(state: GRankState, *, benign: int, scorer: Scorer | None = None) -> Metrics:
    """How far the benign peers' orders are from the order by all benign clicks.

    Args:
      state: of a `g_rank`.
      benign: N, how many peers are benign.
      scorer: the scores of the orders; default the plain counts of what a peer knows.

    Returns:
      Means over benign peers and terms: `distance` (`footrule`), `ndcg` (by the benign clicks),
      `leader` (share of peers and terms whose first item is that of all benign clicks), `size` (clicks
      known), `infected` (share of peers that know a click of an attacker).

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("state", state, GRankState, "Make it with dflax.p2p.g_rank(...).init.")
    log, tags = state.log, state.tags
    items, terms = tags.shape
    if scorer is not None:
        fix = "dflax.p2p.g_rank_score makes one."
        validation.function("scorer", scorer, fix, takes=1)
    validation.integer("benign", benign, low=1, high=log.known.shape[0])
    made = (log.origin >= 0) & (log.origin < benign)
    best = counts(log, made, terms, items).astype(jnp.float32)

    def of_peer(peer: Int[Array, ""]) -> dict[str, Array]:
        row = log.known[peer]
        own = counts(log, row, terms, items).astype(jnp.float32)
        if scorer is not None:
            key = jax.random.key(0)
            own = jax.vmap(lambda term: scorer(Search(log, peer, term, tags, key)))(
                jnp.arange(terms)
            )
        leader = jnp.argmax(jnp.where(tags.T, own, -1.0), axis=1)
        first = jnp.argmax(jnp.where(tags.T, best, -1.0), axis=1)
        return {
            "distance": jnp.mean(jax.vmap(footrule)(own, best, tags.T).astype(jnp.float32)),
            "ndcg": jnp.mean(jax.vmap(ndcg)(own, best, tags.T)),
            "leader": jnp.mean(leader == first),
            "size": jnp.sum(row).astype(jnp.float32),
            "infected": jnp.any(row & (log.origin >= benign)).astype(jnp.float32),
        }

    return jax.tree.map(jnp.mean, jax.lax.map(of_peer, jnp.arange(benign)))


def _places(values: Float[Array, " M"], matches: Bool[Array, " M"]) -> Int[Array, " M"]:
    order = jnp.argsort(jnp.where(matches, -values, jnp.inf), stable=True)
    return jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(order.shape[0]))
