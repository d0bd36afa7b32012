"""Multi-layer perceptron and the linear model, on flattened inputs."""

import math
from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from dflax import validation


class Linear(nn.Module):
    """Logits W x + b of flattened inputs: multinomial logistic regression under cross-entropy.

    Attributes:
      classes: number of outputs, >= 1.
      dtype: dtype of the computation; None means that of the inputs. Parameters are float32.
    """

    classes: int
    dtype: Any = None

    def __post_init__(self) -> None:
        validation.integer("classes", self.classes, low=1)
        validation.dtype("dtype", self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "B ..."], train: bool = False) -> Float[Array, "B classes"]:
        """Logits; `train` changes nothing."""
        return nn.Dense(self.classes, dtype=self.dtype)(_flatten(x))


class MLP(nn.Module):
    """Dense layers with relu between them, on flattened inputs.

    Attributes:
      features: widths of the hidden layers, each >= 1, for example `(200, 200)`.
      classes: number of outputs, >= 1.
      dtype: dtype of the computation; None means that of the inputs. Parameters are float32.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> model = dx.models.MLP((64,), classes=10)
      >>> inputs = jnp.zeros((2, 8, 8, 1))
      >>> params = model.init(jax.random.key(0), inputs)["params"]
      >>> model.apply({"params": params}, inputs).shape
      (2, 10)
    """

    features: Sequence[int]
    classes: int
    dtype: Any = None

    def __post_init__(self) -> None:
        widths("features", self.features)
        validation.integer("classes", self.classes, low=1)
        validation.dtype("dtype", self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "B ..."], train: bool = False) -> Float[Array, "B classes"]:
        """Logits; `train` changes nothing."""
        x = _flatten(x)
        for width in self.features:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.classes, dtype=self.dtype)(x)


def widths(name: str, values: Sequence[int]) -> None:
    """Refuse anything but a sequence of positive integers."""
    fix = f"Write ({values},)." if isinstance(values, int) else ""
    for place, value in enumerate(validation.sequence(name, values, "integers", least=0, fix=fix)):
        validation.integer(f"{name}[{place}]", value, low=1)


def _flatten(x: Float[Array, "B ..."]) -> Float[Array, "B d"]:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
