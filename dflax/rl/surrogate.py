"""PPO's clipped objective, and what it measures of how far a policy has moved."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.algorithm import Metrics
from dflax.data.dataset import AnyArray
from dflax.rl.advantages import floating, weights_like


class Surrogate(NamedTuple):
    """The clipped objective of each sample, and measurements.

    Attributes:
      objective: what is to be maximised, of the shape of the ratios.
      metrics: `clip_fraction`, the share of samples outside of the clip range; `approximate_kl`, the
        mean of `(rho - 1) - log rho`; `ratio`, the mean of rho.
    """

    objective: Float[Array, "..."]
    metrics: Metrics


def clipped(
    log_ratio: Float[AnyArray, "..."],
    advantages: Float[AnyArray, "..."],
    clip: float | Float[Array, "..."],
    *,
    pessimistic: bool = True,
    weights: Float[AnyArray, "..."] | None = None,
) -> Surrogate:
    """The clipped surrogate objective: `min(rho A, clip(rho, 1 - eps, 1 + eps) A)`.

    rho = exp(log_ratio) is the ratio of the probabilities of an action now and when it was taken.

    Args:
      log_ratio: log pi(a|s) - log pi_old(a|s); gradients flow through it.
      advantages: A, broadcast against it; constants to the gradient.
      clip: eps > 0, a number or broadcast against the ratios; traceable.
      pessimistic: whether the smaller of the two counts, as published; else only the clipped one.
      weights: >= 0 of the shape of the ratios, how much each sample counts in the measurements and in
        the objective; None: all 1.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Schulman et al., Proximal Policy Optimization Algorithms, arXiv 1707.06347.
    """
    validation.real("log_ratio", log_ratio)
    validation.real("clip", clip, low=0.0, low_open=True)
    validation.flag("pessimistic", pessimistic)
    log_ratio = floating(log_ratio)
    advantages = jax.lax.stop_gradient(_against("advantages", advantages, log_ratio))
    clip = _against("clip", clip, log_ratio)
    counted = weights_like("weights", weights, log_ratio)
    ratio = jnp.exp(log_ratio)
    kept = jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantages
    objective = jnp.minimum(ratio * advantages, kept) if pessimistic else kept

    def mean(values: Array) -> Array:
        return jnp.sum(counted * values) / jnp.maximum(jnp.sum(counted), 1e-30)

    measured = jax.lax.stop_gradient(
        {
            "clip_fraction": mean((jnp.abs(ratio - 1.0) > clip).astype(ratio.dtype)),
            "approximate_kl": mean(ratio - 1.0 - log_ratio),
            "ratio": mean(ratio),
        }
    )
    return Surrogate(counted * objective, measured)


def _against(name: str, value: Any, ratios: Array) -> Array:
    """The values, broadcast against the ratios."""
    validation.real(name, value)
    try:
        return jnp.broadcast_to(jnp.asarray(value, ratios.dtype), ratios.shape)
    except ValueError:
        raise ValueError(
            f"{name} must have the shape of log_ratio, {ratios.shape}, or one that is broadcast "
            f"against it, got {jnp.shape(value)}."
        ) from None
