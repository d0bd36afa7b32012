"""Gradients of bounded length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.models.averaged import of_weights, with_statistics_of


def clipped(loss: Loss | Oracle, norm: float) -> Oracle:
    """The oracle of a gradient no longer than `norm`: `q min(1, norm / |q|)`, q what `loss` gives.

    |.| is the Euclidean norm over all weights. Running statistics neither count nor are clipped.
    Only what the client sees of its own objective is clipped. The proximal term, dual, momentum and
    weight decay of a method are added afterwards and keep their centre, which a clip within the
    optimiser (`optax.clip_by_global_norm`) would move.

    Args:
      loss: a loss, or an `Oracle`; `clipped(sam(loss, rho), norm)` clips the perturbed gradient.
      norm: greatest length > 0, traceable.

    Returns:
      An `Oracle`.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> loss = lambda params, batch, key: (0.5 * params @ params, {})
      >>> oracle = dx.local.clipped(loss, norm=2.5)
      >>> seen, _ = oracle(jnp.array([3.0, 4.0]), None, jax.random.key(0))
      >>> seen.round(2).tolist()
      [1.5, 2.0]
    """
    oracle = gradient(loss)
    validation.real("norm", norm, low=0.0, low_open=True, scalar=True)

    def evaluate(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Params, Metrics]:
        seen, metrics = oracle(params, batch, key)
        factor = norm / jnp.maximum(jnp.sqrt(squared_norm(of_weights(seen))), norm)
        short = jax.tree.map(lambda q: jnp.asarray(factor, q.dtype) * q, seen)
        return with_statistics_of(seen, short), metrics

    return Oracle(evaluate)


def squared_norm(tree: PyTree[Array]) -> Float[Array, ""]:
    """The squared Euclidean norm over all leaves, added up in float32 or in the widest leaf's dtype."""
    wide = jnp.result_type(jnp.float32, *jax.tree.leaves(tree))
    squares = (jnp.sum(jnp.square(leaf.astype(wide))) for leaf in jax.tree.leaves(tree))
    return sum(squares, start=jnp.zeros((), wide))
