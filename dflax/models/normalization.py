"""Group normalisation whose statistics are two passes over memory."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dflax import validation


class GroupNorm(nn.Module):
    """Drop-in for `flax.linen.GroupNorm`: same parameters, same results, faster on CPU.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias, with mean and variance over the space
    and the channels of a group, per example. Sums over space run per channel first, so that only
    `[B, C]` numbers are ever grouped, and the result is one multiply-add per entry of x.

    Attributes:
      num_groups: number of groups, >= 1; divides the channels.
      epsilon: added to the variance, > 0.
      dtype: dtype of the result; None promotes that of inputs and parameters.
      param_dtype: dtype of "scale" and "bias", `[C]` each.

    References:
      Wu & He, Group Normalization, arXiv 1803.08494.
    """

    num_groups: int = 32
    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        validation.integer("num_groups", self.num_groups, low=1)
        validation.real("epsilon", self.epsilon, low=0.0, low_open=True, scalar=True)
        validation.dtype("dtype", self.dtype)
        validation.dtype("param_dtype", self.param_dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "B *space C"]) -> Float[Array, "B *space C"]:
        """The normalised inputs."""
        channels, groups = x.shape[-1], self.num_groups
        if channels % groups:
            raise ValueError(f"num_groups must divide the {channels} channels, got {groups}.")
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        x, scale, bias = nn.dtypes.promote_dtype(x, scale, bias, dtype=self.dtype)
        flat = x.reshape(x.shape[0], -1, channels)
        wide = flat.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = _over_groups(jnp.mean(wide, axis=1), groups)
        square = _over_groups(jnp.mean(jnp.square(wide), axis=1), groups)
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
        factor = jax.lax.rsqrt(variance + self.epsilon) * scale
        shift = bias - mean * factor
        y = wide * factor[:, None] + shift[:, None]
        return y.astype(x.dtype).reshape(x.shape)


def _over_groups(values: Float[Array, "B C"], groups: int) -> Float[Array, "B C"]:
    """Each channel's value replaced by the mean of its group."""
    grouped = values.reshape(values.shape[0], groups, -1)
    means = jnp.mean(grouped, axis=-1, keepdims=True)
    return jnp.broadcast_to(means, grouped.shape).reshape(values.shape)
