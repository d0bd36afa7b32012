"""Changes of a matrix that have a low rank: as a product, or as singular values between two bases."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class LowRank(NamedTuple):
    """A change of a matrix, `down @ up`.

    Attributes:
      down: `[inputs, rank]`.
      up: `[rank, outputs]`.
    """

    down: Float[Array, "inputs rank"]
    up: Float[Array, "rank outputs"]

    @property
    def rank(self) -> int:
        """R."""
        return self.down.shape[-1]

    def change(self, wide: Any) -> Float[Array, "inputs outputs"]:
        """The product, added up in the type `wide`."""
        return jnp.matmul(self.down, self.up, preferred_element_type=wide)

    def masked_by(self, there: Float[Array, " rank"]) -> "LowRank":
        """A mask of the same shapes from one of components."""
        return LowRank(
            jnp.broadcast_to(there, self.down.shape),
            jnp.broadcast_to(there[:, None], self.up.shape),
        )


class Singular(NamedTuple):
    """A change of a matrix, `left diag(values) right`, as in a singular value decomposition.

    Attributes:
      left: `[inputs, rank]`, columns near orthonormal.
      values: `[rank]`, of any sign.
      right: `[rank, outputs]`, rows near orthonormal.
    """

    left: Float[Array, "inputs rank"]
    values: Float[Array, " rank"]
    right: Float[Array, "rank outputs"]

    @property
    def rank(self) -> int:
        """R."""
        return self.values.shape[-1]

    def change(self, wide: Any) -> Float[Array, "inputs outputs"]:
        """The product, added up in the type `wide`."""
        scaled = self.left.astype(wide) * self.values.astype(wide)
        return jnp.matmul(scaled, self.right, preferred_element_type=wide)

    def masked_by(self, there: Float[Array, " rank"]) -> "Singular":
        """A mask of the same shapes from one of components."""
        return Singular(
            jnp.broadcast_to(there, self.left.shape),
            there,
            jnp.broadcast_to(there[:, None], self.right.shape),
        )


Adapter = LowRank | Singular


def is_adapter(node: Any) -> bool:
    """Whether a node of a tree is a change of one matrix."""
    return isinstance(node, LowRank | Singular)
