"""The small convolutional network of federated learning's first experiments."""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from dflax import validation
from dflax.models.convolution import Conv
from dflax.models.mlp import widths
from dflax.models.pooling import max_pool


class CNN(nn.Module):
    """Blocks of 3x3 convolution, relu and 2x2 max-pooling, then a hidden layer and the logits.

    The defaults have 421,642 parameters on 28x28x1 with ten classes. Odd sizes are rounded down by
    the pooling, so any image of at least `2**len(channels)` pixels a side will do.

    Attributes:
      classes: number of outputs, >= 1.
      channels: output channels of the convolutions, each >= 1.
      hidden: width of the hidden layer, >= 1.
      dtype: dtype of the computation; None means that of the inputs. Parameters are float32.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> model = dx.models.CNN(classes=10)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      421642
    """

    classes: int
    channels: Sequence[int] = (32, 64)
    hidden: int = 128
    dtype: Any = None

    def __post_init__(self) -> None:
        validation.integer("classes", self.classes, low=1)
        widths("channels", self.channels)
        validation.integer("hidden", self.hidden, low=1)
        validation.dtype("dtype", self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False
    ) -> Float[Array, "B classes"]:
        """Logits; `train` changes nothing."""
        smallest = 2 ** len(self.channels)
        if x.ndim != 4 or min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"inputs must be images [B, H, W, C] of at least {smallest} pixels a side, got shape "
                f"{x.shape}. Add the axis of channels, or use fewer channels=."
            )
        for width in self.channels:
            x = nn.relu(Conv(width, (3, 3), dtype=self.dtype)(x))
            # Cropping to an even size lets the pooling reshape; VALID would drop the same pixels.
            x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
            x = max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes, dtype=self.dtype)(x)
