"""Correlations between the units of one model and those of others, summed up batch by batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """What S samples of d units say, of one's own model and of K others.

    Attributes:
      samples: `[]` how many so far.
      own_mean: `[d]`.
      other_mean: `[K, d]`.
      own_square: `[d]` sums of squared deviations.
      other_square: `[K, d]`.
      product: `[K, d, d]` sums of products of deviations, own units first.
    """

    samples: Float[Array, ""]
    own_mean: Float[Array, " d"]
    other_mean: Float[Array, "K d"]
    own_square: Float[Array, " d"]
    other_square: Float[Array, "K d"]
    product: Float[Array, "K d d"]


def none_yet(others: int, units: int) -> Moments:
    """The moments of no samples."""
    zeros = jnp.zeros
    return Moments(
        zeros(()),
        zeros(units),
        zeros((others, units)),
        zeros(units),
        zeros((others, units)),
        zeros((others, units, units)),
    )


def add(moments: Moments, own: Float[Array, "S d"], others: Float[Array, "K S d"]) -> Moments:
    """The moments with one more batch of samples.

    Deviations are from the batch's own mean, and the difference of the means is added: no large
    numbers are subtracted from each other, as they are in E[A B] - E[A] E[B].
    """
    own, others = own.astype(jnp.float32), others.astype(jnp.float32)
    batch = own.shape[0]
    samples = moments.samples + batch
    own_mean, other_mean = own.mean(0), others.mean(1)
    own, others = own - own_mean, others - other_mean[:, None]
    own_step, other_step = own_mean - moments.own_mean, other_mean - moments.other_mean
    share = batch / samples
    between = moments.samples * share
    precise = jax.lax.Precision.HIGHEST
    products = jnp.einsum("su,ksv->kuv", own, others, precision=precise)
    return Moments(
        samples,
        moments.own_mean + share * own_step,
        moments.other_mean + share * other_step,
        moments.own_square + jnp.square(own).sum(0) + between * jnp.square(own_step),
        moments.other_square + jnp.square(others).sum(1) + between * jnp.square(other_step),
        moments.product + products + between * own_step[:, None] * other_step[:, None, :],
    )


def correlations(moments: Moments, epsilon: float | Array = 1e-7) -> Float[Array, "K d d"]:
    """cov_uv / max(sd_u sd_v, epsilon); 0 for units that say the same to everything."""
    count = jnp.maximum(moments.samples, 1.0)
    own = _deviations(moments.own_square / count, moments.own_mean)[:, None]
    other = _deviations(moments.other_square / count, moments.other_mean)[:, None, :]
    found = moments.product / count / jnp.maximum(own * other, epsilon)
    return jnp.where((own > 0) & (other > 0), found, 0.0)


def _deviations(variance: Float[Array, "*K d"], mean: Float[Array, "*K d"]) -> Float[Array, "*K d"]:
    """Standard deviations; 0 where what is left of a constant is the rounding of its mean."""
    rounding = 4 * jnp.finfo(jnp.float32).eps * jnp.abs(mean)
    return jnp.where(variance > jnp.square(rounding), jnp.sqrt(variance), 0.0)
