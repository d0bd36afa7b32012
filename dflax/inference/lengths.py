"""How many tokens prompts and answers have."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation

Lengths = Callable[[Key[Array, ""], int], Int[Array, " n"]]
"""`(key, n) -> [n]` int32 tokens; n is static."""


def constant(tokens: int) -> Lengths:
    """The same number of tokens for all.

    Args:
      tokens: >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("tokens", tokens, low=1)
    return lambda key, n: jnp.full((n,), tokens, jnp.int32)


def log_normal(
    mean: float | Float[Array, ""],
    deviation: float | Float[Array, ""],
    *,
    low: int = 1,
    high: int = 8192,
) -> Lengths:
    """round(clip(exp(N(mean, deviation)), low, high)).

    Args:
      mean: of the logarithm; traceable.
      deviation: of the logarithm, >= 0; traceable.
      low: fewest tokens, >= 1.
      high: most tokens, >= low.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("mean", mean, scalar=True)
    validation.real("deviation", deviation, low=0.0, scalar=True)
    _bounds(low, high)

    def draw(key: Key[Array, ""], n: int) -> Int[Array, " n"]:
        tokens = jnp.exp(mean + deviation * jax.random.normal(key, (n,)))
        return jnp.round(jnp.clip(tokens, low, high)).astype(jnp.int32)

    return draw


def zipf(exponent: float | Float[Array, ""], *, low: int, high: int) -> Lengths:
    """Low with the largest probability, each further token less: P(low + k) ~ (k + 1)^-exponent.

    Args:
      exponent: >= 0; traceable. 0 is uniform.
      low: fewest tokens, >= 1.
      high: most tokens, >= low.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("exponent", exponent, low=0.0, scalar=True)
    _bounds(low, high)
    return lambda key, n: low + ranked(key, n, exponent, high - low + 1)


def ranked(
    key: Key[Array, ""], n: int, exponent: float | Float[Array, ""], ranks: int
) -> Int[Array, " n"]:
    """N draws from 0, ..., ranks - 1 with P(k) ~ (k + 1)^-exponent."""
    weights = jnp.cumsum(jnp.arange(1, ranks + 1, dtype=jnp.float32) ** -exponent)
    drawn = jax.random.uniform(key, (n,)) * weights[-1]
    return jnp.minimum(jnp.searchsorted(weights, drawn, side="right"), ranks - 1).astype(jnp.int32)


def _bounds(low: int, high: int) -> None:
    validation.integer("low", low, low=1)
    validation.integer("high", high, low=low, fix="It must not be below low.")
