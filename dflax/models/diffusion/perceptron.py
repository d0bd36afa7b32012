"""A residual perceptron with time and class: denoiser of vectors, or router of them."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dflax import validation
from dflax.models.diffusion.noised import Noised, check_time_features, time_features


class TimeMLP(nn.Module):
    """Dense layers with residual connections and silu, that read the time beside the inputs.

        h_0 = silu(W [x, features(t), embedding(class)]),   h_l = h_{l-1} + silu(W_l h_{l-1}),   W h_L

    The inputs may have any shape; they are read flat.

    Attributes:
      width: of the hidden layers, >= 1.
      depth: number of hidden layers, >= 1.
      outputs: numbers per example, for a router the number of experts; None: as many as x has, in its
        shape, for a denoiser.
      classes: number of values of the condition, the null class among them; 0: it is not read.
      time_features: even, >= 4.
      highest: the largest frequency of these, radians per unit of time, > 1.
      dtype: dtype of the computation; None means that of the inputs. Parameters are float32.
    """

    width: int
    depth: int = 3
    outputs: int | None = None
    classes: int = 0
    time_features: int = 8
    highest: float = 30.0
    dtype: Any = None

    def __post_init__(self) -> None:
        validation.integer("width", self.width, low=1)
        validation.integer("depth", self.depth, low=1)
        check_head(self.outputs, self.classes)
        check_time_features(self.time_features, self.highest, "time_features")
        validation.dtype("dtype", self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, noised: Noised, train: bool = False) -> Float[Array, "B ..."]:
        """Predictions like x, or `[B, outputs]`; `train` changes nothing."""
        x = noised.x
        flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        when = time_features(noised.time, self.time_features, highest=self.highest)
        seen = [flat, when.astype(flat.dtype)]
        if self.classes:
            known = require_classes(noised)
            seen.append(nn.Embed(self.classes, self.width, dtype=self.dtype)(known))
        h = nn.silu(nn.Dense(self.width, dtype=self.dtype)(jnp.concatenate(seen, axis=1)))
        for _ in range(self.depth - 1):
            h = h + nn.silu(nn.Dense(self.width, dtype=self.dtype)(h))
        made = nn.Dense(self.outputs or flat.shape[1], dtype=self.dtype)(h)
        return made if self.outputs else made.reshape(x.shape)


def check_head(outputs: int | None, classes: int) -> None:
    """Refuse a number of outputs below 1 and a negative number of classes."""
    if outputs is not None:
        validation.integer("outputs", outputs, low=1, fix="None predicts something like x.")
    validation.integer("classes", classes, low=0)


def require_classes(noised: Noised) -> Array:
    """The condition as class numbers `[B]`, for a model that reads them."""
    if noised.condition is None:
        raise ValueError(
            "condition must be class numbers [B] for a model with classes, got None. Train with "
            "conditional=True, and pass condition= to samplers."
        )
    return noised.condition
