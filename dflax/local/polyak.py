"""Momentum as an average of gradients, and rates that may be functions of the round."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dflax import validation

Rate = float | Array | Callable[[Int[Array, ""]], Float[Array, ""]]


def polyak(
    rate: Rate, beta: float | Array = 0.9, *, decay: float | Array = 0.0
) -> Callable[[Int[Array, ""]], optax.GradientTransformation]:
    """Steps along an average of the gradients, in which the newest weighs 1 - beta.

        m <- beta m + (1 - beta) (g + decay x)                    m starts at 0
        x <- x - rate(t) m

    The variance of m's noise is (1 - beta) / (1 + beta) of a gradient's. With `optax.sgd(rate, beta)`
    steps are 1 / (1 - beta) times as long.

    Args:
      rate: >= 0, traceable; or a function of the round's number t. One that is looked at every D rounds
        alone: `lambda t: 0.75 / (1 + t // D)`.
      beta: in [0, 1), traceable. 0 is plain SGD.
      decay: of the weights, >= 0, traceable: the gradient of (decay / 2) |x|^2.

    Returns:
      A function of the round's number, as every `optimizer` argument takes it.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_rate("rate", rate)
    validation.real("beta", beta, low=0.0, high=1.0, high_open=True, scalar=True)
    validation.real("decay", decay, low=0.0, scalar=True)

    def optimizer(index: Int[Array, ""]) -> optax.GradientTransformation:
        length = rate_at(rate, index)
        return optax.chain(
            optax.add_decayed_weights(decay),
            optax.ema(beta, debias=False),
            optax.scale(-length),
        )

    return optimizer


def require_rate(name: str, rate: Rate) -> None:
    """Refuse what is neither a number >= 0 nor a function of the round's number."""
    if callable(rate):
        validation.function(name, rate, "It gets the round's number.", takes=1)
    else:
        validation.real(name, rate, low=0.0, scalar=True)


def rate_at(rate: Rate, index: Int[Array, ""]) -> float | Array:
    """The rate of a round."""
    return rate(jnp.asarray(index)) if callable(rate) else rate
