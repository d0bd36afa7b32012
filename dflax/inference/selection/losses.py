"""What a predictor of relative log-times is trained on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dflax import validation


class Summed(NamedTuple):
    """A loss of each row, and by how much it counts; a batch's loss is sum(total) / sum(terms).

    Attributes:
      total: `[B]`.
      terms: `[B]` >= 0: observations, pairs or rows.
    """

    total: Float[Array, " B"]
    terms: Float[Array, " B"]


Loss = Callable[[Float[Array, "B K"], Float[Array, "B K"], Bool[Array, "B K"]], Summed]


def squared_error(predicted: Any, target: Any, observed: Any) -> Summed:
    """(f_k - z_k)^2 over the observed methods.

    Args:
      predicted: `[B, K]` f.
      target: `[B, K]` z.
      observed: `[B, K]` booleans.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    f, z, seen = _given(predicted, target, observed)
    return Summed((seen * (f - z) ** 2).sum(-1), seen.sum(-1))


def centred_squared_error(predicted: Any, target: Any, observed: Any) -> Summed:
    """(f_k - mean f - z_k)^2 over the observed methods, the mean of f over them, too.

    z is centred over what was observed of a row, which differs from row to row in a table with gaps;
    f is then compared with it in the same way. Of a full table it leaves f's mean free. A row with one
    observation does not count.

    Args:
      predicted: `[B, K]` f.
      target: `[B, K]` z.
      observed: `[B, K]` booleans.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    f, z, seen = _given(predicted, target, observed)
    count = seen.sum(-1)
    mean = (seen * f).sum(-1, keepdims=True) / jnp.maximum(count, 1.0)[:, None]
    several = count > 1
    total = (seen * (f - mean - z) ** 2).sum(-1)
    return Summed(jnp.where(several, total, 0.0), jnp.where(several, count, 0.0))


def pairwise_logistic(predicted: Any, target: Any, observed: Any) -> Summed:
    """log(1 + exp(-s (f_k - f_j))) over pairs of observed methods, s the sign of z_k - z_j.

    Equal times ask for equal predictions: half the loss of either order.

    Args:
      predicted: `[B, K]` f.
      target: `[B, K]` z.
      observed: `[B, K]` booleans.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    f, z, seen = _given(predicted, target, observed)
    gap = f[:, :, None] - f[:, None, :]
    above = (1.0 + jnp.sign(z[:, :, None] - z[:, None, :])) / 2.0
    upper = jnp.triu(jnp.ones(gap.shape[1:]), 1)
    pairs = seen[:, :, None] * seen[:, None, :] * upper
    each = above * jax.nn.softplus(-gap) + (1.0 - above) * jax.nn.softplus(gap)
    return Summed((pairs * each).sum((1, 2)), pairs.sum((1, 2)))


def softmax_of_best(predicted: Any, target: Any, observed: Any) -> Summed:
    """Cross-entropy of softmax(-f) over the observed methods against the fastest of them.

    A row with one observation does not count.

    Args:
      predicted: `[B, K]` f.
      target: `[B, K]` z.
      observed: `[B, K]` booleans.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    f, z, seen = _given(predicted, target, observed)
    there = seen > 0
    logs = jax.nn.log_softmax(jnp.where(there, -f, -1e30), -1)
    best = jnp.argmin(jnp.where(there, z, jnp.inf), -1)
    several = seen.sum(-1) > 1
    total = -jnp.take_along_axis(logs, best[:, None], -1)[:, 0]
    return Summed(jnp.where(several, total, 0.0), several.astype(f.dtype))


def _given(predicted: Any, target: Any, observed: Any) -> tuple[Array, Array, Array]:
    f = jnp.asarray(validation.array("predicted", predicted, kind="real", shape=("B", "K")))
    z = jnp.asarray(validation.array("target", target, kind="real", shape=f.shape))
    seen = validation.array("observed", observed, kind="boolean", shape=f.shape)
    return f, z, jnp.asarray(seen, jnp.float32)
