"""When requests arrive."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation

Arrivals = Callable[[Key[Array, ""], int], Float[Array, " n"]]
"""`(key, n) -> [n]` seconds, not decreasing; n is static."""


def evenly(rate: float | Float[Array, ""]) -> Arrivals:
    """One request every 1 / rate seconds.

    Args:
      rate: requests a second, > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _rate(rate)
    return lambda key, n: (1.0 + jnp.arange(n, dtype=jnp.float32)) / rate


def poisson(rate: float | Float[Array, ""]) -> Arrivals:
    """Independent exponential gaps of mean 1 / rate.

    Args:
      rate: requests a second, > 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _rate(rate)
    return lambda key, n: jnp.cumsum(jax.random.exponential(key, (n,))) / rate


def gamma(rate: float | Float[Array, ""], cv: float | Float[Array, ""]) -> Arrivals:
    """Independent Gamma gaps: shape 1 / cv^2, mean 1 / rate; bursts where cv > 1.

    Args:
      rate: requests a second, > 0; traceable.
      cv: coefficient of variation of the gaps, > 0; traceable. 1 is `poisson`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _rate(rate)
    validation.real("cv", cv, low=0.0, low_open=True, scalar=True)

    def draw(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
        gaps = jax.random.gamma(key, 1.0 / jnp.square(cv), (n,))
        return jnp.cumsum(gaps) * (jnp.square(cv) / rate)

    return draw


def tidal(
    rate: float | Float[Array, ""],
    *,
    amplitude: float | Float[Array, ""],
    period: float | Float[Array, ""],
    phase: float | Float[Array, ""] = 0.0,
) -> Arrivals:
    """A Poisson process whose rate rises and falls.

        lambda(t) = rate (1 + amplitude sin(2 pi t / period + phase)).

    The expected count Lambda(t) is inverted at the arrivals of a process of rate 1. Time begins at 0
    with every call: draw a trace of several days at once and cut it by `blocks`.

    Args:
      rate: mean requests a second, > 0; traceable.
      amplitude: in [0, 1]; traceable.
      period: seconds, > 0; traceable.
      phase: radians; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _rate(rate)
    validation.probability("amplitude", amplitude)
    validation.real("period", period, low=0.0, low_open=True, scalar=True)
    validation.real("phase", phase, scalar=True)
    cycle = 2.0 * jnp.pi / period

    def expected(t: Float[Array, " n"]) -> Float[Array, " n"]:
        return t + amplitude * (jnp.cos(phase) - jnp.cos(cycle * t + phase)) / cycle

    def draw(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
        counted = jnp.cumsum(jax.random.exponential(key, (n,))) / rate
        swing = 2.0 * amplitude / cycle

        def halve(bounds: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            low, high = bounds
            middle = 0.5 * (low + high)
            below = expected(middle) < counted
            return (jnp.where(below, middle, low), jnp.where(below, high, middle)), None

        bounds = (jnp.maximum(counted - swing, 0.0), counted + swing)
        (low, high), _ = jax.lax.scan(halve, bounds, length=32)
        return jax.lax.cummax(0.5 * (low + high))

    return draw


def _rate(rate: float | Float[Array, ""]) -> None:
    validation.real("rate", rate, low=0.0, low_open=True, scalar=True)
