"""Averaging what arrived: aggregators that participants name, each with enough models or none."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax.aggregation.aggregator import Aggregator, Combining
from dflax.algorithm import Metrics, Params
from dflax.decentralized.modest.hash_sampling import first_arrivals
from dflax.programs.exchanges import for_each_of


class Election(NamedTuple):
    """Who aggregates.

    Attributes:
      chosen: `[a]` int32 ids; n for a place that nobody named.
      heard: `[s, a]`, whose model goes where.
    """

    chosen: Int[Array, " a"]
    heard: Bool[Array, "s a"]


class Average(NamedTuple):
    """What the aggregators made of the models, those that have one first.

    Attributes:
      models: their aggregates, leaves `[a, ...]`.
      holders: `[a]` int32 ids, n where no mean was made.
      fires: `[a]`, whether it was.
      counted: `[a]` int32, models in the mean.
      seconds: `[]`, when the last counted model came.
      waited: `[]`, whether an aggregator had to wait for its time-out.
      metrics: the rule's own, those of the first.
    """

    models: Params
    holders: Int[Array, " a"]
    fires: Bool[Array, " a"]
    counted: Int[Array, " a"]
    seconds: Float[Array, ""]
    waited: Bool[Array, ""]
    metrics: Metrics


def elect(named: Int[Array, "s a"], order: Int[Array, " n"]) -> Election:
    """The a nodes that most participants name, of equals the earlier in the order first.

    Args:
      named: `[s, a]` ids that each participant sends to; n for nobody.
      order: `[n]` ids.
    """
    n, a = order.shape[0], named.shape[1]
    ranks = jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32))
    votes = jnp.zeros(n + 1, jnp.int32).at[named].add(1)[:n]
    # Smaller is better: whole numbers of votes, then the place.
    badness = jnp.where(votes > 0, ranks / n - 2.0 * votes, jnp.inf)
    value, best = jax.lax.top_k(-badness, a)
    chosen = jnp.where(value > -jnp.inf, best, n).astype(jnp.int32)
    heard = (named[:, :, None] == chosen[None, None, :]).any(1)
    return Election(chosen, heard & (chosen < n))


def average(
    models: Params,
    finish: Float[Array, "s a"],
    election: Election,
    nodes: int,
    *,
    needed: int,
    least: int | None,
    rule: Aggregator,
    combining: Combining,
) -> Average:
    """What a rule makes of the first models to arrive, each of weight 1.

    An aggregator that has `needed` models averages them; one with fewer waits for a time-out and makes
    do with `least`; else it has nothing.

    Args:
      models: of the participants, leaves `[s, ...]`.
      finish: `[s, a]`, when each model arrives.
      election: who sends where.
      nodes: n.
      needed: models that make a mean, >= 1.
      least: models that make one after the time-out; None: aggregators wait for ever.
      rule: without a state.
      combining: for the rule; of its key one for each aggregator is made.
    """
    chosen, heard = election
    count = heard.sum(0)
    full = count >= needed
    late = jnp.zeros_like(full) if least is None else ~full & (count >= least)
    fires = (full | late) & (chosen < nodes)
    inside = jax.vmap(first_arrivals, in_axes=(1, 1, None), out_axes=1)(
        finish, heard, jnp.int32(needed)
    )
    # Those that have a mean come first: their weights are put in order, and no models.
    order = jnp.argsort(~fires, stable=True)
    inside = (inside & fires[None, :])[:, order]

    def one(weights: Array, key: Array) -> tuple[Params, Any, Metrics]:
        return rule.apply(models, weights, (), combining._replace(key=key))

    keys = jax.random.split(combining.key, chosen.shape[0])[order]
    with for_each_of(len(chosen)):
        means, _, metrics = jax.vmap(one, in_axes=(1, 0))(inside.astype(jnp.float32), keys)
    return Average(
        means,
        jnp.where(fires, chosen, nodes)[order],
        fires[order],
        inside.sum(0),
        jnp.max(jnp.where(inside, finish[:, order], 0.0)),
        late.any(),
        {name: value[0] for name, value in metrics.items()},
    )
