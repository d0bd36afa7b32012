"""A small U-Net with time and class: denoiser of images."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dflax import validation
from dflax.models.convolution import Conv
from dflax.models.diffusion.noised import Noised, time_features
from dflax.models.diffusion.perceptron import check_head, require_classes
from dflax.models.mlp import widths
from dflax.models.normalization import GroupNorm
from dflax.models.pooling import avg_pool


class UNet(nn.Module):
    """Residual blocks down and up over halved images, each told time and class; skips between them.

    Attributes:
      channels: of each level, from the finest; each divisible by `groups`.
      classes: number of values of the condition, the null class among them; 0: it is not read.
      groups: of the normalisation, >= 1.
      dtype: dtype of the computation; None means that of the inputs. Parameters are float32.

    References:
      Ho et al., Denoising Diffusion Probabilistic Models, arXiv 2006.11239.
    """

    channels: Sequence[int] = (16, 32)
    classes: int = 0
    groups: int = 8
    dtype: Any = None

    def __post_init__(self) -> None:
        widths("channels", self.channels)
        if not len(self.channels):
            raise ValueError("channels must list at least one level, got none.")
        check_head(None, self.classes)
        validation.integer("groups", self.groups, low=1)
        for count in self.channels:
            if count % self.groups:
                raise ValueError(
                    f"channels must be divisible by groups = {self.groups}, got {count}."
                )
        validation.dtype("dtype", self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, noised: Noised, train: bool = False) -> Float[Array, "B H W C"]:
        """An image like x; H and W divisible by 2 for each level below the first."""
        images, first, smaller = noised.x, self.channels[0], 2 ** (len(self.channels) - 1)
        if images.ndim != 4 or images.shape[1] % smaller or images.shape[2] % smaller:
            raise ValueError(
                f"inputs must be images [B, H, W, C] whose sides {smaller} divides, got shape "
                f"{images.shape}. Pad them, or give fewer channels="
            )
        known = time_features(noised.time, 32).astype(images.dtype)
        known = nn.Dense(4 * first, dtype=self.dtype, name="time_0")(known)
        known = nn.Dense(4 * first, dtype=self.dtype, name="time_1")(nn.silu(known))
        if self.classes:
            known = known + nn.Embed(self.classes, 4 * first, dtype=self.dtype)(
                require_classes(noised)
            )
        known = nn.silu(known)

        def block(x: Array, channels: int) -> Array:
            return ResidualBlock(channels, self.groups, self.dtype)(x, known)

        x = Conv(first, (3, 3), dtype=self.dtype, name="first")(images)
        skips = []
        for level, count in enumerate(self.channels):
            x = block(x if not level else avg_pool(x, (2, 2), (2, 2)), count)
            skips.append(x)
        x = block(x, self.channels[-1])
        for level, count in reversed(list(enumerate(self.channels))):
            x = block(jnp.concatenate([x, skips[level]], axis=-1), count)
            if level:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = nn.silu(GroupNorm(self.groups, dtype=self.dtype)(x))
        zeros = nn.initializers.zeros
        return Conv(images.shape[-1], (3, 3), kernel_init=zeros, dtype=self.dtype, name="last")(x)


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip; what is known of an example is added between them.

    Attributes:
      channels: of the output, divisible by `groups`.
      groups: of the normalisation.
      dtype: dtype of the computation.
    """

    channels: int
    groups: int = 8
    dtype: Any = None

    def __post_init__(self) -> None:
        validation.integer("channels", self.channels, low=1)
        validation.integer("groups", self.groups, low=1)
        validation.dtype("dtype", self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], known: Float[Array, "B D"]
    ) -> Float[Array, "B H W channels"]:
        """The block's output."""

        def normal(x: Array) -> Array:
            groups = self.groups if x.shape[-1] % self.groups == 0 else 1
            return jax.nn.silu(GroupNorm(groups, dtype=self.dtype)(x))

        h = Conv(self.channels, (3, 3), dtype=self.dtype)(normal(x))
        h = h + nn.Dense(self.channels, dtype=self.dtype)(known)[:, None, None]
        h = Conv(self.channels, (3, 3), dtype=self.dtype)(normal(h))
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="skip")(x)
        return x + h
