"""How much to communicate when: the number r of others that a node hears, as a function of the round.

Each function returns `index -> r` for `random_neighbours`. With T rounds, round t = 0, ..., T - 1 ends
at the time `u = (t + 1) / T`; at u = 1 all but `constant` return `end`, so that `end = n - 1` makes
the last round an exact average under any of them.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation

Real = float | Float[Array, ""]
Intensity = Callable[[Int[Array, ""]], Float[Array, ""]]


def constant(r: Real) -> Intensity:
    """R in every round."""
    validation.real("r", r, low=0.0, scalar=True)
    return lambda index: jnp.asarray(r, jnp.float32)


def linear(start: Real, end: Real, rounds: int) -> Intensity:
    """`start + (end - start) u`."""
    return _over_time(start, end, rounds, lambda u: start + (end - start) * u)


def cosine(start: Real, end: Real, rounds: int) -> Intensity:
    """`end + (start - end) (1 + cos(pi u)) / 2`."""
    return _over_time(
        start, end, rounds, lambda u: end + (start - end) * (1 + jnp.cos(jnp.pi * u)) / 2
    )


def decaying(start: Real, end: Real, rounds: int) -> Intensity:
    """`end + (start - end) exp(-10 u)`: most of the communication in the first tenth."""
    return _over_time(start, end, rounds, lambda u: end + (start - end) * jnp.exp(-10 * u))


def late_growth(start: Real, end: Real, rounds: int, most: Real = 16.0) -> Intensity:
    """`start + (most - start) log10(1 + 9 u^80)`: flat until the last few rounds."""
    validation.real("most", most, low=0.0, scalar=True)
    return _over_time(
        start, end, rounds, lambda u: start + (most - start) * jnp.log10(1 + 9 * u**80)
    )


def switched(start: Real, end: Real, rounds: int, point: Real) -> Intensity:
    """`start` while u < point, then `end`.

    Args:
      start: r before, >= 0; traceable.
      end: r from then on, >= 0; traceable.
      rounds: T >= 1.
      point: when, as a share of the run, >= 0; 1 leaves the last round alone for `end`; traceable.

    Returns:
      `index -> r`.
    """
    validation.real("point", point, low=0.0, scalar=True)
    return _over_time(start, end, rounds, lambda u: jnp.where(u < point, start, end))


def window(start: Real, end: Real, rounds: int, point: Real, width: Real) -> Intensity:
    """`end` while point <= u < point + width, else `start`: the same budget, spent at any time.

    Args:
      start: r outside of the window, >= 0; traceable.
      end: r in it, >= 0; traceable.
      rounds: T >= 1.
      point: where it begins, as a share of the run, >= 0; traceable.
      width: its length, as a share of the run, > 0; traceable.

    Returns:
      `index -> r`; unlike the others `end` in the last round only if the window reaches it.
    """
    validation.real("start", start, low=0.0, scalar=True)
    validation.real("end", end, low=0.0, scalar=True)
    validation.integer("rounds", rounds, low=1)
    validation.real("point", point, low=0.0, scalar=True)
    validation.real("width", width, low=0.0, low_open=True, scalar=True)

    def r(index: Int[Array, ""]) -> Float[Array, ""]:
        # Rounding of u must not move the window by a round.
        u = (jnp.asarray(index, jnp.float32) + 1) / rounds + 1e-6
        inside = (u >= point) & (u < jnp.asarray(point) + width)
        return jnp.where(inside, end, start).astype(jnp.float32)

    return r


def _over_time(
    start: Real, end: Real, rounds: int, law: Callable[[Float[Array, ""]], Array]
) -> Intensity:
    validation.real("start", start, low=0.0, scalar=True)
    validation.real("end", end, low=0.0, scalar=True)
    validation.integer("rounds", rounds, low=1)

    def r(index: Int[Array, ""]) -> Float[Array, ""]:
        u = (jnp.asarray(index, jnp.float32) + 1) / rounds
        over = jnp.asarray(index) + 1 >= rounds
        return jnp.where(over, end, law(u + 1e-6)).astype(jnp.float32)

    return r


__all__ = [
    "constant",
    "cosine",
    "decaying",
    "late_growth",
    "linear",
    "switched",
    "window",
]


def __dir__() -> list[str]:
    return __all__
