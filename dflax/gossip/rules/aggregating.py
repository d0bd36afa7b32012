"""Neighbour rules made of rules for messages: any aggregator, and combinations found on products."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import returned, validation
from dflax.aggregation.aggregator import Aggregator, Combining
from dflax.aggregation.combination import count_dropped
from dflax.aggregation.rows.coordinates import gram
from dflax.aggregation.rows.row_norms import who_counts
from dflax.algorithm import Metrics, Params
from dflax.clients import select, weighted_mean
from dflax.gossip.rules.neighbour_rule import (
    Neighbourhood,
    NeighbourRule,
    Shares,
    nothing_to_remember,
)


def aggregating(
    aggregator: Aggregator, *, step: float | Array = 1.0, least: int = 1
) -> NeighbourRule:
    """A server's way of combining messages, applied by every client to its neighbourhood.

        x_i <- x_i + step aggregator(0, x_1 - x_i, ..., x_k - x_i; w_ii, w_i1, ..., w_ik)

    With the `aggregation.mean` that is `mixer`; with the median or the trimmed mean it is BRIDGE, robust
    against arbitrary neighbours: f of them where the rule tolerates f among k + 1 messages. The
    aggregator sees differences from the own model, so that "no change" is to stay where one is. An
    aggregator with a state has one for each client.

    Args:
      aggregator: for example `dflax.aggregation.trimmed_mean(1)`.
      step: how far a client goes there, in (0, 1], traceable; 0.5 is the mean of what the aggregator
        makes and the own model.
      least: >= 1, messages without which the rule means nothing, the own one among them: 2 f + 1 of a
        rule that shall bear f. A graph on which some client hears fewer is refused.

    Returns:
      A `NeighbourRule` with the aggregator's metrics, averaged over clients; of a `combination`, such as
      `krum`, also the metric of `combining`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Fang, Yang and Bajwa, BRIDGE: Byzantine-Resilient Decentralized Gradient Descent, arXiv 1908.08098.
    """
    fix = "For example dflax.aggregation.median()."
    validation.instance("aggregator", aggregator, Aggregator, fix)
    validation.real("step", step, low=0.0, high=1.0, low_open=True, scalar=True)
    validation.integer("least", least, low=1)
    if aggregator.shares is not None:
        return combining(_part_of_the_way(aggregator.shares, step), least=least)

    def init(own: Params, neighbours: Int[Array, " k"]) -> Any:
        return aggregator.init(own)

    def apply(
        own: Params, others: Params, weights: Array, memory: Any, here: Neighbourhood
    ) -> tuple[Params, Any, Metrics]:
        changes, shares = _changes(own, others, weights, here)
        key = jax.random.fold_in(here.key, here.client)
        senders = jnp.concatenate([here.client[None], here.neighbours])
        combining = Combining(key, here.index, senders, params=own)
        way, memory, metrics = aggregator.apply(changes, shares, memory, combining)
        way = jax.tree.map(lambda d: jnp.asarray(step, d.dtype) * d, way)
        return _moved(own, way), memory, metrics

    return NeighbourRule(init, apply, least=least)


def combining(shares: Shares, *, least: int = 1) -> NeighbourRule:
    """The rule `x_i <- sum_j a_j x_j / sum_j a_j` over the own model and those heard.

        a = shares(G, w, key),    G_jk = <x_j - c, x_k - c>       norms over all parameters

    Row 0 is the client's own model, the others are those it hears. The point c is the own model, or the
    median of all models where the products are made for all clients at once: a rule must not depend on
    it. A model that holds a NaN or an infinity, or so far away that its product overflows, is not heard;
    the metric `messages_dropped` counts such messages. A client whose own model does keeps it.

    Args:
      shares: `(G, w, key) -> (a, metrics)`: `[r, r]`, 0 in the rows and columns of who is not heard,
        and `[r]`, the weights, 0 for them, to `[r]`, >= 0. Metrics are numbers.
      least: as in `aggregating`.

    Returns:
      A `NeighbourRule` with the metrics of `shares` and, for each neighbour, `used`: 1 where its model
      has a part in the result, else 0.

    Raises:
      TypeError, ValueError: naming the argument; from the mixing, naming what `shares` returned that
        does not fit.
    """
    validation.function("shares", shares, "Say (products, weights, key) -> (shares, {}).", takes=3)
    validation.integer("least", least, low=1)

    def checked(
        products: Float[Array, "r r"], weights: Float[Array, " r"], key: Key[Array, ""]
    ) -> tuple[Float[Array, " r"], Metrics]:
        name = "shares(products, weights, key)"
        given, metrics = returned.parts(name, shares(products, weights, key), ("shares", "metrics"))
        returned.metrics(f"the metrics of {name}", metrics)
        if jnp.shape(given) != weights.shape:
            raise ValueError(
                f"shares of {name} must be one number for each model, {weights.shape}, got shape "
                f"{jnp.shape(given)}."
            )
        return jnp.where((weights > 0).at[0].set(True), given, 0), metrics

    def apply(
        own: Params, others: Params, weights: Array, memory: tuple[()], here: Neighbourhood
    ) -> tuple[Params, tuple[()], Metrics]:
        changes, given = _changes(own, others, weights, here)
        present, dropped = who_counts(changes, given)
        whole = select(present, changes, jax.tree.map(jnp.zeros_like, changes))
        products = gram(whole)
        near = jnp.isfinite(jnp.diagonal(products))
        dropped = dropped + jnp.sum(present & ~near).astype(jnp.float32)
        present = present & near
        products = jnp.where(near[:, None] & near, products, 0)
        key = jax.random.fold_in(here.key, here.client)
        found, metrics = checked(products, jnp.where(present, given, 0), key)
        step = weighted_mean(whole, found)
        used = {"used": (found[1:] > 0).astype(jnp.float32)}
        return _moved(own, step), memory, count_dropped(metrics, dropped) | used

    return NeighbourRule(nothing_to_remember, apply, least=least, shares=checked)


def _changes(
    own: Params, others: Params, weights: Array, here: Neighbourhood
) -> tuple[Params, Float[Array, " r"]]:
    """The way from the own model to itself and to each of the others, and the weights of all of them."""

    def change(mine: Array, theirs: Array) -> Array:
        wide = jnp.promote_types(mine.dtype, jnp.float32)
        mine, theirs = mine[None].astype(wide), theirs.astype(wide)
        return jnp.concatenate([jnp.zeros_like(mine), theirs - mine])

    changes = jax.tree.map(change, own, others)
    return changes, jnp.concatenate([here.own_weight[None], weights])


def _part_of_the_way(found: Callable[..., tuple[Array, Metrics]], step: float | Array) -> Shares:
    """The shares of an aggregator's combination, and the own model's of what is left of the way."""

    def shares(
        products: Float[Array, "r r"], weights: Float[Array, " r"], key: Key[Array, ""]
    ) -> tuple[Float[Array, " r"], Metrics]:
        given, metrics = found(products, weights > 0, key)
        total = given.sum()
        given = step * given / jnp.where(total > 0, total, 1)
        return given.at[0].add(jnp.where(total > 0, 1 - step, 1)), metrics

    return shares


def _moved(own: Params, step: Params) -> Params:
    return jax.tree.map(lambda x, d: (x.astype(d.dtype) + d).astype(x.dtype), own, step)
