"""How many prefixes of a level are extended to the next."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.heavy_hitters.candidates import largest


class Extension(NamedTuple):
    """A rule for the number of prefixes that are extended.

    Attributes:
      most: the largest number that it ever gives, static.
      number: `number(value, deviation, valid) -> []` int32 from the `[D]` estimates of a level, their
        standard deviations where a value is 0, and which of them there are. No more are extended than
        there are.
    """

    most: int
    number: Callable[[Float[Array, " D"], Float[Array, " D"], Bool[Array, " D"]], Int[Array, ""]]


def fixed(number: int) -> Extension:
    """Always the same number t >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("number", number, low=1)
    return Extension(int(number), lambda value, deviation, valid: jnp.int32(number))


def adaptive(
    k: int,
    *,
    c: float | Float[Array, ""] = 1.0,
    least: int | None = None,
    most: int | None = None,
) -> Extension:
    """As many as cannot be told from the k-th, without those that cannot be told from nothing.

        t = clip(#{v: f_v > max(f_(k) - c sigma_v, c sigma_v)}, least, most),

    f_(k) the k-th largest estimate, or the smallest of fewer. The rule is inferred from what is told of
    TAP, whose paper may have another: this function is the place for it.

    Args:
      k: how many items are looked for, >= 1.
      c: deviations that count as indistinguishable, >= 0, traceable.
      least: default max(2, k/2).
      most: at least `least`; default 2k, or `least`.

    Returns:
      An `Extension`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("k", k, low=1, high=2**20)
    validation.real("c", c, low=0.0, scalar=True)
    least = max(2, k // 2) if least is None else least
    validation.integer("least", least, low=1)
    most = max(2 * k, least) if most is None else most
    validation.integer("most", most, low=least, fix="It must not be below least.")

    def number(
        value: Float[Array, " D"], deviation: Float[Array, " D"], valid: Bool[Array, " D"]
    ) -> Int[Array, ""]:
        threshold = kth_largest(value, valid, k)
        above = value > jnp.maximum(threshold - c * deviation, c * deviation)
        return jnp.clip(jnp.sum(above & valid, dtype=jnp.int32), least, most)

    return Extension(int(most), number)


def kth_largest(value: Float[Array, " D"], valid: Bool[Array, " D"], k: int) -> Float[Array, ""]:
    """The k-th largest valid value, the smallest where there are fewer, -inf where there is none."""
    places = largest(value, valid, min(k, value.shape[0]))
    last = jnp.clip(jnp.sum(valid, dtype=jnp.int32), 1, places.shape[0]) - 1
    return jnp.where(valid.any(), value[places[last]], -jnp.inf)
