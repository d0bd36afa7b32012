"""ResNet-18 with group or batch normalisation."""

from typing import Any, Literal, get_args

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dflax import validation
from dflax.models.convolution import Conv
from dflax.models.normalization import GroupNorm
from dflax.models.pooling import max_pool

Norm = Literal["group", "batch"]


class ResNet18(nn.Module):
    """Residual network of four stages with two basic blocks each.

    Group normalisation is the default: batch statistics differ between clients with different data.
    With `norm="batch"` hand the whole variables dict to algorithms, see `dflax.models.statistics`.

    Attributes:
      classes: number of outputs, >= 1.
      norm: "group" or "batch".
      groups: groups of the group normalisation; divides `width`.
      width: channels of the first stage, doubled at each later one.
      small_images: True for 3x3 convolution without pooling as first layer (CIFAR); False for 7x7
        with stride 2 and 3x3 max-pooling (ImageNet).
      dtype: dtype of the computation; None means that of the inputs. Parameters are float32.

    References:
      He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385.
      Wu & He, Group Normalization, arXiv 1803.08494.
    """

    classes: int
    norm: Norm = "group"
    groups: int = 32
    width: int = 64
    small_images: bool = True
    dtype: Any = None

    def __post_init__(self) -> None:
        validation.integer("classes", self.classes, low=1)
        validation.integer("groups", self.groups, low=1)
        validation.integer("width", self.width, low=1)
        validation.choice("norm", self.norm, get_args(Norm))
        validation.flag("small_images", self.small_images)
        validation.dtype("dtype", self.dtype)
        if self.norm == "group" and self.width % self.groups:
            raise ValueError(
                f"groups must divide width = {self.width}, got {self.groups}. "
                "Pass for example groups=2."
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False
    ) -> Float[Array, "B classes"]:
        """Logits; `train` chooses between batch and running statistics."""
        if self.small_images:
            x = Conv(self.width, (3, 3), use_bias=False, dtype=self.dtype)(x)
        else:
            x = Conv(self.width, (7, 7), 2, padding=3, use_bias=False, dtype=self.dtype)(x)
        x = nn.relu(normalize(self.norm, self.groups, train, self.dtype)(x))
        if not self.small_images:
            x = max_pool(x, (3, 3), (2, 2), "SAME")
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(self.width * 2**stage, stride, self.norm, self.groups, self.dtype)(
                    x, train
                )
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.classes, dtype=self.dtype)(x)


class BasicBlock(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), with a 1x1 projection of x where shapes differ.

    Attributes:
      features: output channels.
      stride: stride of the first convolution and of the projection.
      norm: "group" or "batch".
      groups: groups of the group normalisation.
      dtype: dtype of the computation.
    """

    features: int
    stride: int = 1
    norm: Norm = "group"
    groups: int = 32
    dtype: Any = None

    def __post_init__(self) -> None:
        validation.integer("features", self.features, low=1)
        validation.integer("stride", self.stride, low=1)
        validation.choice("norm", self.norm, get_args(Norm))
        validation.integer("groups", self.groups, low=1)
        validation.dtype("dtype", self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w f"]:
        """The block's output."""
        y = Conv(self.features, (3, 3), self.stride, padding=1, use_bias=False, dtype=self.dtype)(x)
        y = nn.relu(normalize(self.norm, self.groups, train, self.dtype)(y))
        y = Conv(self.features, (3, 3), use_bias=False, dtype=self.dtype)(y)
        y = normalize(self.norm, self.groups, train, self.dtype)(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), self.stride, use_bias=False, dtype=self.dtype)(x)
            x = normalize(self.norm, self.groups, train, self.dtype)(x)
        return nn.relu(x + y)


def normalize(norm: Norm, groups: int, train: bool, dtype: Any) -> nn.Module:
    """The normalisation layer of that kind."""
    if norm == "group":
        return GroupNorm(groups, epsilon=1e-5, dtype=dtype)
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)
