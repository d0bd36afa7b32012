"""TRADES: clean accuracy and stability under attack as two terms of one loss."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch
from dflax.local.adversarial_training.attack import distances, projected_gradient
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.models.apply import Model, as_apply


def trades(
    loss: Loss,
    model: Model,
    radius: float | Array,
    steps: int,
    *,
    beta: float | Array = 6.0,
    **options: Any,
) -> Oracle:
    """The oracle of TRADES.

    With the model's class probabilities p(.) and KL(p || q) = sum_c p_c log(p_c / q_c), a minibatch's
    loss is

        loss(x) + beta mean_j max_|delta|<=radius KL(p(inputs_j) || p(inputs_j + delta_j))

    where the maximum is sought by projected gradient ascent on the divergence itself.

    Args:
      loss: the clean loss, for example `dflax.losses.classification(model)`.
      model: gives class scores `[B, C]`, see `dflax.models.as_apply`.
      radius: of the ball, as in `projected_gradient`.
      steps: P of the ascent. It starts at random: at the example itself the divergence is 0 and flat.
      beta: weight of the second term >= 0; traceable.
      **options: of `projected_gradient`: `norm`, `step_size`, `bounds`.

    Returns:
      An `Oracle`. Metrics are the clean loss's, `divergence` and `perturbation`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy,
      arXiv 1901.08573.
    """
    validation.function("loss", loss, "Make one for example with dflax.losses.classification.")
    validation.real("beta", beta, low=0.0, scalar=True)
    if options.get("random_start") is False:
        raise ValueError(
            "random_start must stay True, got False: the divergence has no slope at the example itself."
        )
    apply = as_apply(model)

    def divergence(
        params: Params, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Metrics]:
        # The attacked batch carries the clean inputs' scores for labels.
        clean, moved = (
            jax.nn.log_softmax(batch.labels),
            jax.nn.log_softmax(apply(params, batch.inputs, key)),
        )
        kl = jnp.sum(jnp.exp(clean) * (clean - moved), axis=-1)
        if batch.mask is None:
            return kl.mean(), {}
        return kl @ batch.mask / jnp.maximum(batch.mask.sum(), jnp.finfo(kl.dtype).tiny), {}

    attack = projected_gradient(divergence, radius, steps, **options)

    def both(
        params: Params, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Metrics]:
        assert key is not None, "an oracle always gets a key"
        attack_key, loss_key, model_key = jax.random.split(key, 3)
        scores = apply(params, batch.inputs, None)
        fixed = batch._replace(labels=jax.lax.stop_gradient(scores))
        moved = attack(params, fixed, attack_key)
        value, metrics = loss(params, batch, loss_key)
        # Here the clean scores are differentiated as well, as published.
        scores = apply(params, batch.inputs, model_key)
        apart, _ = divergence(params, moved._replace(labels=scores), model_key)
        extra = {
            "divergence": apart,
            "perturbation": distances(moved.inputs, batch.inputs).max(),
        }
        return value + beta * apart, metrics | extra

    return gradient(both)
