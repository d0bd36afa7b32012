"""The networks of AirLLM: a coarse policy with its critic, and a denoiser of ranks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dflax import validation
from dflax.models.diffusion.noised import Noised, time_features
from dflax.rl.distributions import Gaussian


class CoarsePolicy(nn.Module):
    """A Gaussian of the raw coarse action, and the value of the observation.

        h = mish(W_2 mish(norm(W_1 o)));   raw ~ N(W_m h, exp(log_deviation)^2),   V = w h

    The deviation depends on no observation.

    Attributes:
      actions: m, numbers of the coarse action.
      hidden: width of both layers.
    """

    actions: int
    hidden: int = 256

    def __post_init__(self) -> None:
        validation.integer("actions", self.actions, low=1)
        validation.integer("hidden", self.hidden, low=1)
        super().__post_init__()

    @nn.compact
    def __call__(self, observed: Float[Array, "... D"]) -> tuple[Gaussian, Float[Array, "..."]]:
        """The distribution of raw actions `[..., m]`, and values `[...]`."""
        h = jax.nn.mish(nn.LayerNorm(epsilon=1e-5)(nn.Dense(self.hidden)(observed)))
        h = jax.nn.mish(nn.Dense(self.hidden)(h))
        mean = nn.Dense(self.actions, name="mean")(h)
        log = self.param("log_deviation", nn.initializers.constant(-0.5), (self.actions,))
        value = nn.Dense(1, name="value")(h)[..., 0]
        return Gaussian(mean, jnp.clip(log, -5.0, 1.0)), value


class RankDenoiser(nn.Module):
    """The noise in noised ranks, given the coarse action: linear layers with residual connections.

        h = W [x_t, z] + mish(W_t features(t));   h <- h + W_l mish(norm(h))  twice;   W_o mish(norm(h))

    Attributes:
      hidden: width.
      features: of the time, even, >= 4.
    """

    hidden: int = 512
    features: int = 64

    def __post_init__(self) -> None:
        validation.integer("hidden", self.hidden, low=1)
        validation.integer("features", self.features, low=4)
        super().__post_init__()

    @nn.compact
    def __call__(self, noised: Noised) -> Float[Array, "B P"]:
        """`[B, P]`, of `noised.x [B, P]` and the condition `[B, m]`."""
        # Frequencies from 0.1 to 1000 radians over the whole path.
        when = time_features(0.1 * noised.time, self.features, highest=10_000.0)
        when = jax.nn.mish(nn.Dense(self.hidden, name="time")(when))
        coarse: Any = noised.condition
        seen = jnp.concatenate([noised.x, coarse], axis=-1)
        h = nn.Dense(self.hidden, name="entrance")(seen) + when
        for _ in range(2):
            h = h + nn.Dense(self.hidden)(_activated(h))
        return nn.Dense(noised.x.shape[-1], name="exit")(_activated(h))


def _activated(h: Float[Array, "B D"]) -> Float[Array, "B D"]:
    # Within nn.compact the layer belongs to the module that is being called.
    return jax.nn.mish(nn.LayerNorm(epsilon=1e-5)(h))
