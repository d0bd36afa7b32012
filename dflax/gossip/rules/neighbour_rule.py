"""Neighbour rules: what one client makes of its own model and of those that it hears."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import returned, validation
from dflax.algorithm import Metrics, Params
from dflax.gossip.mixer import Known
from dflax.gossip.rules.calibration import Calibration, Examples
from dflax.gossip.rules.letters import Letters

# From products and weights of a client's model, first, and of those it hears, to shares of them.
Shares = Callable[
    [Float[Array, "r r"], Float[Array, " r"], Key[Array, ""]], tuple[Float[Array, " r"], Metrics]
]


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
      private: the client's row of what the rule's `private` holds; () for nothing.
      letters: what the neighbours wrote to it, of a rule with letters; None in writing them.
    """

    client: Int[Array, ""]
    neighbours: Int[Array, " k"]
    own_weight: Float[Array, ""]
    key: Key[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # over the method of tuples
    examples: Calibration
    private: Any = ()
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
      least: the fewest models that a client must hear for the rule to mean anything, its own among them.
      shares: of a rule without a memory whose result is a combination of the models, found on their
        products alone, see `combining`; None for all others. Where many hear many, `by_rule` finds the
        combinations of all clients on one table of products, and no neighbour's model is ever copied.
      private: what each client has for itself from the start, leaves `[n, ...]`: a test set, its
        classes. A client's row is `here.private`; the rows are dealt over devices with the clients.
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
    least: int = 1
    shares: Shares | None = None
    private: PyTree[Array] = ()
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


def nothing_to_remember(own: PyTree[Array], neighbours: Int[Array, " k"]) -> tuple[()]:
    """The `init` of rules without a memory."""
    return ()
