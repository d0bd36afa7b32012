"""Gradients of convex conjugates: what dual methods ask of a client instead of gradients."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax.algorithm import Params
from dflax.data.dataset import Batch

Conjugate = Callable[[Params, Batch], Params]


def least_squares_conjugate(y: Float[Array, " d"], batch: Batch) -> Float[Array, " d"]:
    """Grad f*(y) = argmax_x <y, x> - f(x) of f(x) = (1/m) |D x - b|^2.

    It is `(D'D)^-1 ((m/2) y + D'b)`, a local solve; D has full rank where f is strongly convex.

    Args:
      y: `[d]`.
      batch: inputs D `[m, d]`, labels b `[m]`, all that the client has; rows with mask 0 do not count.

    Returns:
      x `[d]`.
    """
    mask = jnp.ones(batch.labels.shape, y.dtype) if batch.mask is None else batch.mask
    rows = batch.inputs * mask[:, None]
    moment = rows.T @ batch.inputs
    right = 0.5 * mask.sum() * y + rows.T @ batch.labels
    return jnp.linalg.solve(moment, right)
