"""Laws of the times at which networks are trained."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Key

from dflax import validation

Times = Callable[[Key[Array, ""], int], Float[Array, " B"]]


def uniform(low: float | Float[Array, ""] = 0.0, high: float | Float[Array, ""] = 1.0) -> Times:
    """Uniform times: t ~ U(low, high).

    Args:
      low: in [0, 1), below `high`; traceable.
      high: in (0, 1]; traceable.

    Returns:
      `(key, B) -> [B]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.probability("low", low, high_open=True)
    validation.probability("high", high, low_open=True)
    known = not (validation.is_traced(low) or validation.is_traced(high))
    if known and float(low) >= float(high):
        raise ValueError(f"low must be below high = {high}, got {low}.")
    return lambda key, count: jax.random.uniform(key, (count,), minval=low, maxval=high)


def logit_normal(
    mean: float | Float[Array, ""] = 0.0, deviation: float | Float[Array, ""] = 1.0
) -> Times:
    """Logit-normal times, t = sigmoid(n), n ~ N(mean, deviation^2): few near the ends.

    Args:
      mean: > 0 leans towards noise; traceable.
      deviation: > 0; traceable.

    Returns:
      `(key, B) -> [B]`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Esser et al., Scaling Rectified Flow Transformers, arXiv 2403.03206.
    """
    validation.real("mean", mean, scalar=True)
    validation.real("deviation", deviation, low=0.0, low_open=True, scalar=True)
    return lambda key, count: jax.nn.sigmoid(mean + deviation * jax.random.normal(key, (count,)))


def on_grid(steps: int) -> Times:
    """Times at which a sampler of N steps asks its network: uniform over {1/N, 2/N, ..., 1}.

    Args:
      steps: N >= 1, as for `grid`.

    Returns:
      `(key, B) -> [B]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("steps", steps, low=1)
    return lambda key, count: (1.0 + jax.random.randint(key, (count,), 0, steps)) / steps
