"""The last few rollouts, kept beside the newest."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


class Windows(NamedTuple):
    """Windows of experience in the order of time.

    Attributes:
      rows: leaves `[(W + 1) T, ...]`, the oldest step first, the newest window last.
      kept: leaves `[W, T, ...]`, what the next window follows; the oldest is gone.
    """

    rows: PyTree[Array]
    kept: PyTree[Array]


def no_windows(window: PyTree[jax.ShapeDtypeStruct], count: int) -> PyTree[Array]:
    """`[W, T, ...]` zeros in the place of W windows that have not been.

    Whatever tells which steps count must be 0 for those that do not.

    Args:
      window: shapes of a window's leaves, `[T, ...]`.
      count: W >= 0.
    """
    return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), window)


def followed_by(kept: PyTree[Array], newest: PyTree[Array]) -> Windows:
    """The windows kept, and the newest after them.

    Args:
      kept: leaves `[W, T, ...]`, of `no_windows` or of the last call.
      newest: leaves `[T, ...]`.
    """

    def both(old: Array, new: Array) -> Array:
        return jnp.concatenate([old, new[None]])

    def flat(leaf: Array) -> Array:
        return leaf.reshape(-1, *leaf.shape[2:])

    joined: Any = jax.tree.map(both, kept, newest)
    return Windows(jax.tree.map(flat, joined), jax.tree.map(lambda leaf: leaf[1:], joined))
