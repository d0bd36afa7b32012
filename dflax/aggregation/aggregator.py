"""The protocol of everything that turns m messages into one, and the weighted mean."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Metrics
from dflax.clients import select, weighted_mean

Message = PyTree[Array]


class Aggregator(NamedTuple):
    """How a server combines its clients' messages.

    A message is a change of the model, so a combination of 0 means no change.

    Attributes:
      init: `init(message) -> state`, from one message's shape (the model).
      apply: `apply(messages, weights, state, key) -> (message, state, metrics)`. `messages` has leaves
        `[m, ...]`, `weights` is `[m]` with 0 for clients that did not report: their rows hold no
        message and must not count. When all weights are 0 the result is 0.
      shares: of a rule without a state that takes a combination of the messages and finds it on their
        products alone, see `combination`; None for all others. Such a rule can be applied to means of
        messages that are never made: see `nnm`.
    """

    init: Callable[[Message], Any]
    apply: Callable[
        [Message, Float[Array, " m"], Any, Key[Array, ""]], tuple[Message, Any, Metrics]
    ]
    shares: (
        Callable[
            [Float[Array, "m m"], Bool[Array, " m"], Key[Array, ""]],
            tuple[Float[Array, " m"], Metrics],
        ]
        | None
    ) = None


def mean() -> Aggregator:
    """The weighted mean `sum_i w_i x_i / sum_i w_i`, as one product per leaf.

    References:
      McMahan et al., Communication-Efficient Learning of Deep Networks, arXiv 1602.05629.
    """

    def init(message: Message) -> tuple[()]:
        return ()

    def apply(
        messages: Message, weights: Float[Array, " m"], state: tuple[()], key: Key[Array, ""]
    ) -> tuple[Message, tuple[()], Metrics]:
        return weighted_mean(messages, weights), state, {}

    return Aggregator(init, apply)


def counted_mean(messages: Message, weights: Float[Array, " m"]) -> Message:
    """`weighted_mean` of the messages of positive weight; the others may hold anything, NaNs too.

    For rules that have found which combination of the messages they want. It costs one reading more.

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
    nothing = jax.tree.map(jnp.zeros_like, messages)
    return weighted_mean(select(jnp.asarray(weights) > 0, messages, nothing), weights)
