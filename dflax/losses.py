"""Losses `(params, batch, key) -> (scalar, metrics)`, means over a batch that respect its mask."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss
from dflax.models.apply import STATISTICS, Apply, as_apply, has_statistics, is_linen

PerExample = Callable[[Array, Batch], dict[str, Float[Array, " B"]]]


def classification(apply: nn.Module | Apply, *, label_smoothing: float = 0.0) -> Loss:
    """Mean softmax cross-entropy of class scores.

    With scores z and target distribution p = (1 - s) onehot(y) + s / C:
    `loss = - mean over examples of sum_c p_c log softmax(z)_c`.

    Args:
      apply: the model, see `dflax.models.as_apply`; gives scores `[B, ..., C]` for labels `[B, ...]`.
      label_smoothing: s in [0, 1); traceable.

    Returns:
      A loss with the metrics "loss" (as above) and "accuracy".

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("label_smoothing", label_smoothing, low=0.0, high=1.0, high_open=True)

    def per_example(scores: Array, batch: Batch) -> dict[str, Array]:
        plain = optax.softmax_cross_entropy_with_integer_labels(scores, batch.labels)
        # The smoothed target's second part: uniform over classes.
        uniform = -jax.nn.log_softmax(scores).mean(-1) if _present(label_smoothing) else 0.0
        losses = (1.0 - label_smoothing) * plain + label_smoothing * uniform
        hits = scores.argmax(-1) == batch.labels
        return {"loss": _over_positions(losses), "accuracy": _over_positions(hits)}

    return from_examples(apply, per_example)


def language_modelling(apply: nn.Module | Apply) -> Loss:
    """Mean cross-entropy of the next token.

    `loss = - mean over examples and positions t < L - 1 of log softmax(z_t)[token_(t+1)]`, with the
    scores z_t that the model gives after seeing tokens 0, ..., t.

    Args:
      apply: the model; gives scores `[B, L, V]` for tokens `batch.inputs` `[B, L]`. Labels are not read.

    Returns:
      A loss with the metrics "loss" (in nats per token) and "accuracy" of the most likely token.
    """

    def per_example(scores: Array, batch: Batch) -> dict[str, Array]:
        ahead, scores = jnp.asarray(batch.inputs)[:, 1:], scores[:, :-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, ahead)
        hits = scores.argmax(-1) == ahead
        return {"loss": _over_positions(losses), "accuracy": _over_positions(hits)}

    return from_examples(apply, per_example)


def squared_error(apply: nn.Module | Apply) -> Loss:
    """Half the mean squared error: `mean over examples of (1/2) |prediction - label|^2`.

    Args:
      apply: the model; gives predictions of the labels' shape `[B, ...]` (a last axis of length 1 is
        dropped where the labels have none).

    Returns:
      A loss with the metric "loss".
    """

    def per_example(predictions: Array, batch: Batch) -> dict[str, Array]:
        labels = jnp.asarray(batch.labels)
        if predictions.ndim == labels.ndim + 1 and predictions.shape[-1] == 1:
            predictions = predictions[..., 0]
        if predictions.shape != labels.shape:
            raise ValueError(
                f"apply must give predictions of the labels' shape {labels.shape}, got "
                f"{predictions.shape}."
            )
        squares = 0.5 * jnp.square(predictions - labels)
        return {"loss": squares.reshape(squares.shape[0], -1).sum(1)}

    return from_examples(apply, per_example)


def with_l2(loss: Loss, strength: float) -> Loss:
    """Adds `(strength / 2) |params|^2`; the metrics gain "l2", the penalty, and "loss" stays bare.

    Args:
      loss: any loss.
      strength: >= 0; traceable. Running statistics of normalisation layers are left out.
    """
    validation.function("loss", loss)
    validation.real("strength", strength, low=0.0)

    def penalised(
        params: Params, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Metrics]:
        value, metrics = loss(params, batch, key)
        weights = params["params"] if has_statistics(params) else params
        penalty = 0.5 * strength * optax.tree.norm(weights, squared=True)
        return value + penalty, metrics | {"l2": penalty}

    return penalised


def from_examples(apply: nn.Module | Apply, per_example: PerExample) -> Loss:
    """A loss from what is measured on each example; what every loss here is made with.

    Args:
      apply: the model.
      per_example: `(outputs, batch) -> {"loss": [B], name: [B], ...}`.

    Returns:
      The loss: the mean of "loss" over the batch, weighted by `batch.mask` where there is one, and the
      means of all entries as metrics. An empty batch (mask all 0) has loss 0. With running
      statistics among the params (see `dflax.models.with_statistics`), the gradient with respect to
      them is old - new, so that a step of rate 1 replaces them.
    """
    function = as_apply(apply)
    linen = is_linen(apply)

    def loss(
        params: Params, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Metrics]:
        moves = linen and key is not None and has_statistics(params)
        outputs = function(params, batch.inputs, key)
        outputs, statistics = outputs if moves else (outputs, None)
        metrics = {
            name: _mean(values, batch.mask) for name, values in per_example(outputs, batch).items()
        }
        value = metrics["loss"]
        if moves:
            value = value + _replace(params[STATISTICS], statistics)
        return value, metrics

    return loss


def _replace(old: Any, new: Any) -> Float[Array, ""]:
    """Zero, with gradient old - new with respect to the running statistics."""
    frozen = jax.lax.stop_gradient
    terms = jax.tree.map(lambda o, n: jnp.sum(frozen(o - n) * (o - frozen(o))), old, new)
    return jnp.sum(jnp.stack(jax.tree.leaves(terms)))


def _mean(values: Float[Array, " B"], mask: Float[Array, " B"] | None) -> Float[Array, ""]:
    if mask is None:
        return values.mean()
    total = mask.sum()
    # Selected rather than multiplied: what a padded example yields may not be finite.
    kept = jnp.where(mask > 0, values, 0.0) * mask
    return jnp.where(total > 0, kept.sum() / jnp.where(total > 0, total, 1.0), 0.0)


def _over_positions(values: Array) -> Float[Array, " B"]:
    """The mean of `[B, ...]` over everything but the examples."""
    return values.astype(jnp.float32).reshape(values.shape[0], -1).mean(1)


def _present(value: Any) -> bool:
    return validation.is_traced(value) or bool(value != 0.0)
