"""Numbers of the server that may follow the round, as a learning rate does."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation

Rate = float | Float[Array, ""] | Callable[[Int[Array, ""]], float | Float[Array, ""]]


def check_rate(name: str, rate: Rate, **bounds: Any) -> None:
    """Refuse what is neither a real number nor a function of the round's number that returns one.

    Of a function the value in round 0 is looked at.

    Args:
      name: the argument's name, for the message.
      rate: a number, or `number -> number`; traceable.
      **bounds: of `dflax.validation.real`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    fix = "Or give a function of the round's number that returns one, such as lambda t: 0.998**t."
    made = rate
    if callable(rate):
        validation.function(name, rate, "It gets the round's number.", takes=1)
        made = rate(jnp.int32(0))
    validation.real(
        name,
        made,
        scalar=True,
        fix=fix,
        **bounds,
    )


def rate_at(rate: Rate, number: Int[Array, ""]) -> float | Float[Array, ""]:
    """The rate of a round: the number itself, or what a function of the round's number returns."""
    return rate(number) if callable(rate) else rate
