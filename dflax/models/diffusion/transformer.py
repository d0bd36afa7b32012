"""DiT: a transformer over patches whose layers are scaled and shifted by time and class."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dflax import validation
from dflax.models.diffusion.noised import Noised, time_features
from dflax.models.diffusion.perceptron import check_head, require_classes
from dflax.models.transformer import attention, check_blocks, patches


class DiT(nn.Module):
    """Diffusion transformer with adaLN-Zero: denoiser of images, or router of them.

    Images `[B, H, W, C]` are cut into patches. Every block is the identity at the start: what it adds is
    scaled by a gate that time and class make, which begins at 0. A router has one more token, read out
    linearly.

    Attributes:
      patch: pixels per side of a patch, divides H and W.
      width: embedding width, divisible by `heads`.
      depth: number of blocks, >= 1.
      heads: attention heads, >= 1.
      outputs: numbers per example, for a router the number of experts; None: an image like x.
      classes: number of values of the condition, the null class among them; 0: it is not read.
      dtype: dtype of the computation; None means that of the inputs. Parameters are float32.

    References:
      Peebles and Xie, Scalable Diffusion Models with Transformers, arXiv 2212.09748.
    """

    patch: int
    width: int = 64
    depth: int = 4
    heads: int = 4
    outputs: int | None = None
    classes: int = 0
    dtype: Any = None

    def __post_init__(self) -> None:
        validation.integer("patch", self.patch, low=1)
        check_blocks(self.width, self.depth, self.heads, 0.0)
        check_head(self.outputs, self.classes)
        validation.dtype("dtype", self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, noised: Noised, train: bool = False) -> Float[Array, "B ..."]:
        """An image like x, or `[B, outputs]`; `train` changes nothing."""
        images = noised.x
        x = nn.Dense(self.width, dtype=self.dtype, name="embedding")(patches(images, self.patch))
        small = nn.initializers.normal(0.02)
        if self.outputs is not None:
            token = self.param("token", small, (1, 1, self.width)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        positions = self.param("positions", small, x.shape[1:])
        x = x + positions.astype(x.dtype)
        known = time_features(noised.time, 64).astype(x.dtype)
        known = nn.Dense(self.width, dtype=self.dtype, name="time_0")(known)
        known = nn.Dense(self.width, dtype=self.dtype, name="time_1")(nn.silu(known))
        if self.classes:
            embedding = nn.Embed(self.classes, self.width, dtype=self.dtype, embedding_init=small)
            known = known + embedding(require_classes(noised))
        known = nn.silu(known)
        for _ in range(self.depth):
            x = AdaptiveBlock(self.heads, dtype=self.dtype)(x, known)
        shift, scale = _modulation(known, 2, self.dtype)
        x = _moved(nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)(x), shift, scale)
        if self.outputs is not None:
            return nn.Dense(self.outputs, dtype=self.dtype, name="head")(x[:, 0])
        zeros = nn.initializers.zeros
        pixels = self.patch**2 * images.shape[-1]
        made = nn.Dense(pixels, kernel_init=zeros, dtype=self.dtype, name="head")(x)
        return _image(made, images.shape, self.patch)


class AdaptiveBlock(nn.Module):
    """A transformer block: what attention and dense layers add is gated by what is known.

    Attributes:
      heads: attention heads; divides the width.
      dtype: dtype of the computation.
    """

    heads: int
    dtype: Any = None

    def __post_init__(self) -> None:
        validation.integer("heads", self.heads, low=1)
        validation.dtype("dtype", self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], known: Float[Array, "B D"]
    ) -> Float[Array, "B L D"]:
        """The block's output, of what is known of each example (time, class)."""
        width = x.shape[-1]
        parts = _modulation(known, 6, self.dtype)
        normal = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)
        seen = _moved(normal(x), parts[0], parts[1])
        joint = nn.Dense(3 * width, dtype=self.dtype, name="query_key_value")(seen)
        joint = joint.reshape(*x.shape[:2], 3, self.heads, width // self.heads)
        mixed = attention(joint[:, :, 0], joint[:, :, 1], joint[:, :, 2]).reshape(x.shape)
        x = x + parts[2][:, None] * nn.Dense(width, dtype=self.dtype, name="projection")(mixed)
        seen = _moved(normal(x), parts[3], parts[4])
        hidden = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(seen))
        return x + parts[5][:, None] * nn.Dense(width, dtype=self.dtype)(hidden)


def _modulation(known: Float[Array, "B D"], parts: int, dtype: Any) -> list[Float[Array, "B D"]]:
    zeros = nn.initializers.zeros
    return jnp.split(
        nn.Dense(parts * known.shape[-1], kernel_init=zeros, dtype=dtype)(known), parts, axis=-1
    )


def _moved(
    x: Float[Array, "B L D"], shift: Float[Array, "B D"], scale: Float[Array, "B D"]
) -> Float[Array, "B L D"]:
    return x * (1.0 + scale[:, None]) + shift[:, None]


def _image(
    cut: Float[Array, "B L P"], shape: tuple[int, ...], size: int
) -> Float[Array, "B H W C"]:
    """Images from the pixels of their patches, row by row."""
    count, height, width, channels = shape
    made = cut.reshape(count, height // size, width // size, size, size, channels)
    return made.swapaxes(2, 3).reshape(shape)
