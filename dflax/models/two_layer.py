"""The two-layer network of theory: random output signs, only the first layer learns."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from dflax import validation


class TwoLayer(nn.Module):
    """f(x) = sum_r a_r relu(<u_r, x> + b_r), one number per input, with a and b fixed.

    a_r is -width^(-1/3) or +width^(-1/3) with equal chance, b_r ~ N(0, 1) and u_r ~ N(0, I), each
    drawn for the first half of the units; the second half copies u_r and b_r with the opposite a_r, so
    that f is 0 everywhere at the start (up to the rounding of a sum of `width` terms).

    All three are parameters, so that a model is one pytree; no gradient reaches a and b, and
    optimisers that move nothing without a gradient (no weight decay) leave them bit for bit.

    Attributes:
      width: m_h, number of units, even, >= 2.

    References:
      Li, Song and Yang, Federated Adversarial Learning, arXiv 2208.03635.
    """

    width: int

    def __post_init__(self) -> None:
        validation.integer("width", self.width, low=2)
        if self.width % 2:
            raise ValueError(
                f"width must be even, got {self.width}: the second half of the units mirrors the first."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "B ..."], train: bool = False) -> Float[Array, " B"]:
        """The outputs; `train` changes nothing."""
        x = x.reshape(x.shape[0], -1)
        half = self.width // 2

        def twice(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
            drawn = jax.random.normal(key, shape)
            return jnp.concatenate([drawn, drawn])

        def opposite(key: Key[Array, ""]) -> Array:
            drawn = jax.random.rademacher(key, (half,)) * self.width ** (-1 / 3)
            return jnp.concatenate([drawn, -drawn]).astype(jnp.float32)

        hidden = self.param("hidden", twice, (half, x.shape[1]))
        bias = jax.lax.stop_gradient(self.param("bias", twice, (half,)))
        signs = jax.lax.stop_gradient(self.param("signs", opposite))
        return nn.relu(x @ hidden.T + bias) @ signs
