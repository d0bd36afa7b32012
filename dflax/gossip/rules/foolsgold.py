"""FoolsGold among neighbours: who resembles another one of them is not trusted."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax.aggregation.aggregator import counted_mean
from dflax.aggregation.rows.coordinates import gram
from dflax.aggregation.rows.distances import finite_rows
from dflax.aggregation.rows.similarity import cosines_of, similarity_scores
from dflax.algorithm import Metrics, Params
from dflax.clients import select
from dflax.gossip.rules.neighbour_rule import Neighbourhood, NeighbourRule, stateless


def local_foolsgold() -> NeighbourRule:
    """Every client scores the models that it hears, and its own, by their likeness to each other.

        s   = similarity_scores(cos(x_a, x_b) over i and those that i hears)
        x_i <- sum_a s_a x_a / sum_a s_a

    The more two models point alike, the less either counts: copies of one model, which an adversary
    sends under several names, get 0. Who sends one copy into every neighbourhood is not seen; for that
    see `sybilwall`. Models with a NaN or an infinity do not count. Where all scores are 0 the client
    keeps its own.

    Returns:
      A `NeighbourRule` without a memory: `by_rule(graph, local_foolsgold())`. Metric: `trust`, s of
      those that are heard.

    References:
      Fung, Yoon and Beschastnikh, The Limitations of Federated Learning in Sybil Settings, RAID 2020,
      arXiv 1808.04866.
    """

    def apply(
        own: Params, others: Params, weights: Float[Array, " k"], here: Neighbourhood
    ) -> tuple[Params, Metrics]:
        models = beside(own, others)
        there = jnp.concatenate([jnp.ones(1, bool), weights > 0]) & finite_rows(models)
        compared = select(there, models, jax.tree.map(jnp.zeros_like, models))
        scores = similarity_scores(cosines_of(gram(compared)), there)
        mean = counted_mean(models, scores)
        return select(scores.sum() > 0, mean, own), {"trust": scores[1:]}

    return stateless(apply)


def beside(own: Params, others: Params) -> Params:
    """The client's own model and the others as rows, leaves `[1 + k, ...]`."""
    return jax.tree.map(lambda x, rows: jnp.concatenate([x[None], rows]), own, others)
