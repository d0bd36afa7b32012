"""Gradients example by example, for clipping, privacy and influence."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import select
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.models.averaged import STATISTICS, holds_statistics


def per_example(loss: Loss | Oracle, *, at_once: int | None = None) -> Oracle:
    """The oracle of a minibatch whose gradient has an axis of examples: `q_j = grad loss(x; example j)`.

    Each example is seen as a minibatch of its own, with a key of its own. Where the loss is a mean over
    examples, the mean of the q_j, weighted by `batch.mask` if there is one, is the minibatch's gradient.

    Args:
      loss: a loss, or an `Oracle`.
      at_once: examples whose gradients are computed at the same time, >= 1; None: all. The result
        holds B gradients in any case.

    Returns:
      An `Oracle`; its gradients have leaves `[B, ...]` and its metrics are `[B]`, both 0 for examples of
      mask 0. Local steps want one gradient: reduce it first.

    Raises:
      TypeError, ValueError: naming the argument; and, while it is traced, a model with "batch_stats":
        one example alone has no statistics.
    """
    oracle = gradient(loss)
    validation.at_once(at_once)

    def evaluate(
        params: Params, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Params, Metrics]:
        if holds_statistics(params):
            raise ValueError(
                f'params must hold no running statistics ("{STATISTICS}"), which are of a batch, for '
                "gradients example by example. Take a model with GroupNorm."
            )
        count = batch.labels.shape[0]
        keys = None if key is None else jax.random.split(key, count)

        def one(scanned: tuple[Batch, Array | None]) -> tuple[Params, Metrics]:
            alone, own_key = scanned
            single = jax.tree.map(lambda leaf: leaf[None], alone)
            return oracle(params, single, own_key)  # type: ignore[arg-type]

        examples = batch._replace(mask=None), keys
        if at_once is None or at_once >= count:
            found = jax.vmap(one)(examples)
        else:
            found = jax.lax.map(one, examples, batch_size=at_once)
        if batch.mask is None:
            return found
        return select(batch.mask > 0, found, jax.tree.map(jnp.zeros_like, found))

    return Oracle(evaluate)
