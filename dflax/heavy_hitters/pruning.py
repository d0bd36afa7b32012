"""What a party leaves out of its candidates because the party before it has ruled it out."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.heavy_hitters.candidates import largest
from dflax.heavy_hitters.extension import kth_largest


class Known(NamedTuple):
    """What is known of a party's candidates from elsewhere.

    Attributes:
      frequency: `[D]` estimates.
      deviation: `[D]` their standard deviations.
      there: `[D]` bool, for which candidates there is one.
    """

    frequency: Float[Array, " D"]
    deviation: Float[Array, " D"]
    there: Bool[Array, " D"]


class Pruning(NamedTuple):
    """A rule of pruning.

    Attributes:
      share: of a group's users, in [0, 1), who report on all candidates before it is pruned; 0: nobody
        does. Static.
      keeps: `keeps(prior, own, valid, k) -> [D]` bool. `prior` and `own` are `Known` from the
        predecessor and from those users; nothing is there without them.
    """

    share: float
    keeps: Callable[[Known, Known, Bool[Array, " D"], int], Bool[Array, " D"]]


def prior(z: float | Float[Array, ""] = 1.0) -> Pruning:
    """Prunes what the predecessor's estimates rule out.

    Of candidate v with the predecessor's estimate f_v and deviation s_v, and f_(k) the k-th largest f
    of the candidates (the smallest of fewer), v is pruned if

        f_v + z s_v < f_(k)   or   f_v + z s_v <= 0.

    What the predecessor does not know is kept. If fewer than k are left, k are kept: those that it does
    not know, then those of the largest f. The rule is inferred, as that of `adaptive`.

    Args:
      z: >= 0, traceable; large: nothing is pruned.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("z", z, low=0.0, scalar=True)

    def keeps(prior: Known, own: Known, valid: Bool[Array, " D"], k: int) -> Bool[Array, " D"]:
        return _not_ruled_out(prior, valid, k, z)

    return Pruning(0.0, keeps)


def validated(z: float | Float[Array, ""] = 1.0, share: float = 0.1) -> Pruning:
    """As `prior`, once the predecessor's estimates are combined with those of some users of one's own.

    Both are weighed by their inverse variances, 1/s_v^2. The users who are asked first are not asked
    again, so that each user still reports once.

    Args:
      z: >= 0, traceable; large: nothing is pruned.
      share: of the group's users who are asked first, in (0, 1), static.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("z", z, low=0.0, scalar=True)
    validation.probability("share", share, low_open=True, high_open=True)
    if validation.is_traced(share):
        raise TypeError("share must be known when the program is made, got a traced value.")

    def keeps(prior: Known, own: Known, valid: Bool[Array, " D"], k: int) -> Bool[Array, " D"]:
        weights = [
            jnp.where(known.there & (known.deviation > 0), 1 / jnp.square(known.deviation), 0.0)
            for known in (prior, own)
        ]
        total = weights[0] + weights[1]
        mean = weights[0] * prior.frequency + weights[1] * own.frequency
        combined = Known(
            jnp.where(total > 0, mean / total, prior.frequency),
            jnp.where(total > 0, jax.lax.rsqrt(total), prior.deviation),
            prior.there,
        )
        return _not_ruled_out(combined, valid, k, z)

    return Pruning(float(share), keeps)


def _not_ruled_out(
    known: Known, valid: Bool[Array, " D"], k: int, z: float | Float[Array, ""]
) -> Bool[Array, " D"]:
    judged = known.there & valid
    threshold = kth_largest(known.frequency, judged, k)
    best = known.frequency + z * known.deviation
    ruled_out = judged & ((best < threshold) | (best <= 0))
    kept = valid & ~ruled_out
    length = valid.shape[0]
    first = largest(jnp.where(judged, known.frequency, jnp.inf), valid, min(k, length))
    at_least: Int[Array, ""] = jnp.minimum(jnp.sum(valid, dtype=jnp.int32), first.shape[0])
    these = jnp.where(jnp.arange(first.shape[0]) < at_least, first, length)
    few = jnp.zeros(length, bool).at[these].set(True, mode="drop")
    return jnp.where(jnp.sum(kept) < k, few, kept)
