"""The protocol of everything that turns m messages into one, and the weighted mean."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import validation
from dflax.aggregation.rows.distances import finite_rows
from dflax.algorithm import Metrics, Params
from dflax.clients import select, weighted_mean, weighted_sum
from dflax.clients.reductions import require_real, shares
from dflax.participation import Count

Message = PyTree[Array]


class Combining(NamedTuple):
    """One combination: what a rule may know of it beside the messages.

    A rule that wraps another hands this on whole, changed where it means to change something.

    Attributes:
      key: the combination's own typed key.
      index: `[]` int32, number of the round, for what varies in time.
      senders: `[m]` int32, the client's number in [0, n) of every row, so that a rule can remember a
        client. None where rows are nobody's, as in buckets, or where messages are combined by hand.
      clients: n, static; None where it is not known.
      params: the model that the clients started from: the server's before the round, or the own one of
        a client that combines what its neighbours sent. None where there is none.
      invited: `[m]` who of the senders takes part in the round, whether or not its message arrived;
        None where that is not known.
    """

    key: Key[Array, ""]
    index: Int[Array, ""] | int = 0  # type: ignore[assignment]  # over the method of tuples
    senders: Int[Array, " m"] | None = None
    clients: Count | None = None
    params: Params | None = None
    invited: Bool[Array, " m"] | None = None


class Aggregator(NamedTuple):
    """How a server combines its clients' messages.

    A message is a change of the model, so a combination of 0 means no change.

    Attributes:
      init: `init(message) -> state`, from one message's shape (the model).
      apply: `apply(messages, weights, state, combining) -> (message, state, metrics)`. `messages` has
        leaves `[m, ...]`, `weights` is `[m]` with 0 for clients that did not report: their rows hold
        no message and must not count. When all weights are 0 the result is 0. For the rest see
        `Combining`.
      shares: of a rule without a state that takes a combination of the messages and finds it on their
        products alone, see `combination`; None for all others. Such a rule can be applied to means of
        messages that are never made: see `nnm`.
      linear: of a rule without state and metrics that takes a combination known from the weights alone:
        from these to its coefficients, `[m]`; None for all others. Such a rule can be applied to scaled
        messages that are never made: see `arc`.
      gives: of a rule whose combination has other shapes than a message: from one message to what it
        gives, of which only shapes are read; None for all others.
    """

    init: Callable[[Message], Any]
    apply: Callable[[Message, Float[Array, " m"], Any, Combining], tuple[Message, Any, Metrics]]
    shares: (
        Callable[
            [Float[Array, "m m"], Bool[Array, " m"], Key[Array, ""]],
            tuple[Float[Array, " m"], Metrics],
        ]
        | None
    ) = None
    linear: Callable[[Float[Array, " m"]], Float[Array, " m"]] | None = None
    gives: Callable[[Message], Message] | None = None


def mean() -> Aggregator:
    """The weighted mean `sum_i w_i x_i / sum_i w_i`, as one product per leaf.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> messages, weights = jnp.array([[1.0], [2.0], [3.0], [4.0], [100.0]]), jnp.ones(5)
      >>> rule = dx.aggregation.mean()
      >>> combining = dx.aggregation.Combining(jax.random.key(0))
      >>> combined, *_ = rule.apply(messages, weights, rule.init(messages[0]), combining)
      >>> float(combined[0])
      22.0

    References:
      McMahan et al., Communication-Efficient Learning of Deep Networks, arXiv 1602.05629.
    """

    def init(message: Message) -> tuple[()]:
        return ()

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], combining: Combining
    ) -> tuple[Message, tuple[()], Metrics]:
        return weighted_mean(messages, weights), state, {}

    def linear(weights: Float[Array, " m"]) -> Float[Array, " m"]:
        total = weights.sum()
        return weights / jnp.where(total > 0, total, 1)

    return Aggregator(init, apply, linear=linear)


def counted_mean(messages: Message, weights: Float[Array, " m"]) -> Message:
    """`weighted_mean` of the messages of positive weight; the others may hold anything, NaNs too.

    For rules that have found which combination of the messages they want. It costs a second reading
    and a copy of all messages where one of them holds a NaN or an infinity, and else nothing.

    Args:
      messages: floating-point leaves `[m, ...]`.
      weights: `[m]`, >= 0. When all are 0 the result is 0.

    Returns:
      Leaves `[...]` in their own dtype.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.leading_axis("messages", messages)
    validation.real("weights", weights, low=0.0)
    if np.ndim(weights) != 1:
        raise ValueError(f"weights must be one number per message, got shape {np.shape(weights)}.")
    require_real(messages)
    given, leaves = jnp.asarray(weights), jax.tree.leaves(messages)
    wide = jnp.result_type(jnp.float32, *leaves)
    return weighted_sum(messages, shares(given, len(given), wide), given > 0)


def counted_sum(
    messages: Message,
    coefficients: Float[Array, " m"],
    present: Bool[Array, " m"] | None = None,
) -> Message:
    """`weighted_sum` of those who are present; the others, of coefficient 0, may hold anything.

    Args:
      messages: floating-point leaves `[m, ...]`.
      coefficients: `[m]`, 0 for those who are not present.
      present: `[m]`; None: those whose coefficient is not 0.
    """
    there = coefficients != 0 if present is None else present
    return weighted_sum(messages, coefficients, there)


def without_the_rest(
    function: Callable[[Message, Array], Any],
    messages: Message,
    factors: Array,
    present: Bool[Array, " m"],
) -> Any:
    """`function(messages, factors)`, where factors are 0 for those who do not count.

    0 times NaN is NaN: where any message is not finite, those who do not count are replaced by zeros
    first. Only then is a copy of all messages made, which costs more than all that rules do with them.
    """

    def cleaned(messages: Message, factors: Array) -> Any:
        nothing = jax.tree.map(jnp.zeros_like, messages)
        return function(select(present, messages, nothing), factors)

    return jax.lax.cond(jnp.all(finite_rows(messages)), function, cleaned, messages, factors)
