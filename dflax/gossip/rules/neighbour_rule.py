"""Neighbour rules: what one client makes of its own model and of those that it hears."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import returned, validation
from dflax.aggregation.aggregator import Aggregator, Combining
from dflax.algorithm import Metrics, Params
from dflax.gossip.mixer import Known
from dflax.gossip.rules.calibration import Calibration, Examples
from dflax.gossip.rules.letters import Letters


class Neighbourhood(NamedTuple):
    """What one client knows of a mixing beside the models that it hears.

    Attributes:
      client: `[]` int32, its number.
      neighbours: `[k]` int32, the numbers of those whose models it hears, in the same order. An empty
        slot bears the client's own number.
      own_weight: `[]` the weight of its own model: 1 less those of the others.
      key: the mixing's typed key, one for all clients: `jax.random.fold_in(key, client)` is a client's.
      index: `[]` int32, number of the round.
      examples: what the client may look at, where the rule asks for `Examples`.
      letters: what the neighbours wrote to it, of a rule with letters; None in writing them.
    """

    client: Int[Array, ""]
    neighbours: Int[Array, " k"]
    own_weight: Float[Array, ""]
    key: Key[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # over the method of tuples
    examples: Calibration
    letters: Letters | None = None


class NeighbourRule(NamedTuple):
    """What one client makes of its own model and of k others; `by_rule` makes a mixer of it.

    Attributes:
      init: `init(own, neighbours) -> memory` of one client, () for none. `neighbours` are the numbers
        `[k]` of who is heard in each slot, -1 where that changes from mixing to mixing.
      apply: `apply(own, others, weights, memory, here) -> (own, memory, metrics)` for one client.
        `own` has leaves `[...]`, `others` leaves `[k, ...]`, and `weights` is `[k]`, >= 0: the entries
        of a mixing matrix. In the place of who is absent, and in empty slots, stands the own model, at
        weight 0. `here` is the `Neighbourhood`. A metric is a number `[]`, averaged over the clients
        that take part, or one for each neighbour, `[k]`, averaged over all that are heard.
      known: what is known of the mixer that it makes, see `Known`. By default the rule is no product
        with a matrix and moves the mean. `graph` is filled in.
      real: whether it mixes real numbers alone; False for rules of integers, masks, stamps.
      examples: which of its examples a client compares models on, None for none.
      letters: `letters(own, memory, weights, here) -> Letters`, what a client writes to its neighbours
        beside its model, one letter for each slot, from what it remembers before the mixing; read by
        them as `here.letters`. It travels where both hear each other. None for no letters.
    """

    init: Callable[[Params, Int[Array, " k"]], Any]
    apply: Callable[
        [Params, Params, Float[Array, " k"], Any, Neighbourhood], tuple[Params, Any, Metrics]
    ]
    known: Known = Known(symmetric=False, doubly_stochastic=False, linear=False)
    real: bool = True
    examples: Examples | None = None
    letters: Callable[[Params, Any, Float[Array, " k"], Neighbourhood], Letters] | None = None


def stateless(
    function: Callable[[Params, Params, Float[Array, " k"], Neighbourhood], tuple[Params, Metrics]],
) -> NeighbourRule:
    """The rule of a function `(own, others, weights, here) -> (own, metrics)`, without a memory.

    Args:
      function: as `NeighbourRule.apply`, but for the memory.

    Returns:
      A `NeighbourRule`.

    Raises:
      TypeError: no function of four arguments.
    """
    fix = "Say (own, others, weights, here) -> (own, metrics)."
    validation.function("function", function, fix, takes=4)

    def apply(
        own: Params, others: Params, weights: Array, memory: tuple[()], here: Neighbourhood
    ) -> tuple[Params, tuple[()], Metrics]:
        name = "a rule's function(own, others, weights, here)"
        made = function(own, others, weights, here)
        after, metrics = returned.parts(name, made, ("own", "metrics"))
        return after, memory, metrics

    return NeighbourRule(nothing_to_remember, apply)


def aggregating(aggregator: Aggregator) -> NeighbourRule:
    """A server's way of combining messages, applied by every client to its neighbourhood.

        x_i <- x_i + aggregator(0, x_1 - x_i, ..., x_k - x_i; w_ii, w_i1, ..., w_ik)

    With the `aggregation.mean` that is `mixer`; with the median or the trimmed mean it is BRIDGE, robust
    against arbitrary neighbours: f of them where the rule tolerates f among k + 1 messages. The
    aggregator sees differences from the own model, so that "no change" is to stay where one is. An
    aggregator with a state has one for each client.

    Args:
      aggregator: for example `dflax.aggregation.trimmed_mean(1)`.

    Returns:
      A `NeighbourRule` with the aggregator's metrics, averaged over clients.

    Raises:
      TypeError: no aggregator.

    References:
      Fang, Yang and Bajwa, BRIDGE: Byzantine-Resilient Decentralized Gradient Descent, arXiv 1908.08098.
    """
    fix = "For example dflax.aggregation.median()."
    validation.instance("aggregator", aggregator, Aggregator, fix)

    def init(own: Params, neighbours: Int[Array, " k"]) -> Any:
        return aggregator.init(own)

    def apply(
        own: Params, others: Params, weights: Array, memory: Any, here: Neighbourhood
    ) -> tuple[Params, Any, Metrics]:
        def change(mine: Array, theirs: Array) -> Array:
            wide = jnp.promote_types(mine.dtype, jnp.float32)
            mine, theirs = mine[None].astype(wide), theirs.astype(wide)
            return jnp.concatenate([jnp.zeros_like(mine), theirs - mine])

        changes = jax.tree.map(change, own, others)
        shares = jnp.concatenate([here.own_weight[None], weights])
        key = jax.random.fold_in(here.key, here.client)
        senders = jnp.concatenate([here.client[None], here.neighbours])
        combining = Combining(key, here.index, senders, params=own)
        step, memory, metrics = aggregator.apply(changes, shares, memory, combining)
        moved = jax.tree.map(lambda x, d: (x.astype(d.dtype) + d).astype(x.dtype), own, step)
        return moved, memory, metrics

    return NeighbourRule(init, apply)


def nothing_to_remember(own: PyTree[Array], neighbours: Int[Array, " k"]) -> tuple[()]:
    """The `init` of rules without a memory."""
    return ()
