"""Losses `loss(params, batch, key) -> (scalar, metrics)` of models of any library.

`batch` is a `dflax.data.dataset.Batch`; `key` is a typed key while training and None in evaluation.
Loss and metrics come from one forward pass and are means over the batch weighted by `batch.mask`,
zero when the mask is zero everywhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch
from dflax.models.apply import Model, as_apply

Loss = Callable[[Params, Batch, Key[Array, ""] | None], tuple[Float[Array, ""], Metrics]]


def classification(model: Model, *, label_smoothing: float | Array = 0.0) -> Loss:
    """Softmax cross-entropy of class numbers, with the accuracy.

    loss = mean of -sum_c q_c log softmax(z)_c, where q = (1 - s) onehot(label) + s / C.

    Args:
      model: a linen module, its `apply`, or a function, see `dflax.models.as_apply`; its outputs are
        logits z `[B, C]` for labels `[B]`.
      label_smoothing: s in [0, 1).

    Returns:
      A loss with the metrics "loss" and "accuracy".

    Raises:
      TypeError: `model` cannot be called.
      ValueError: `label_smoothing` is out of range.
    """
    apply = as_apply(model)
    validation.real("label_smoothing", label_smoothing, low=0.0, high=1.0, high_open=True)
    plain = isinstance(label_smoothing, (int, float)) and label_smoothing == 0

    def loss(
        params: Params, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        logits, carry = apply.forward(params, batch.inputs, key)
        _check_logits(logits, batch.labels)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        if not plain:
            uniform = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
            losses = (1.0 - label_smoothing) * losses + label_smoothing * uniform
        weights = _weights(batch, losses)
        mean = _mean(losses, weights)
        hits = (jnp.argmax(logits, axis=-1) == batch.labels).astype(losses.dtype)
        return mean + carry, {"loss": mean, "accuracy": _mean(hits, weights)}

    return loss


def language_modelling(model: Model) -> Loss:
    """Cross-entropy per token of a causal language model, with the accuracy of its best guess.

    loss = mean over b, t with labels[b, t] >= 0 of -log softmax(z[b, t])_{labels[b, t]}

    The labels are the tokens that follow: of sequences `[B, L + 1]` the inputs are `tokens[:, :-1]`
    and the labels `tokens[:, 1:]`. Negative labels (padding) do not count. The perplexity of a test
    set is exp("loss") of the whole set; it is no mean, so it is no metric here.

    Args:
      model: as in `classification`; its outputs are logits z `[B, L, V]` for inputs `[B, L]`.

    Returns:
      A loss with the metrics "loss" (nats per token) and "accuracy".

    Raises:
      TypeError: `model` cannot be called.
    """
    apply = as_apply(model)

    def loss(
        params: Params, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        logits, carry = apply.forward(params, batch.inputs, key)
        _check_logits(logits, batch.labels)
        counted = batch.labels >= 0
        labels = jnp.where(counted, batch.labels, 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        weights = _weights(batch, losses) * counted
        mean = _mean(losses, weights)
        hits = (jnp.argmax(logits, axis=-1) == labels).astype(losses.dtype)
        return mean + carry, {"loss": mean, "accuracy": _mean(hits, weights)}

    return loss


def squared_error(model: Model) -> Loss:
    """Mean squared error: mean over examples and entries of (output - label)^2.

    Args:
      model: as in `classification`; its outputs have the shape of the labels, `[B, ...]`.

    Returns:
      A loss with the metric "loss".

    Raises:
      TypeError: `model` cannot be called.
    """
    apply = as_apply(model)

    def loss(
        params: Params, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        outputs, carry = apply.forward(params, batch.inputs, key)
        if outputs.shape != batch.labels.shape:
            raise ValueError(
                f"labels must have the shape of the outputs, {outputs.shape}, got "
                f"{batch.labels.shape}. Reshape one of them."
            )
        errors = optax.squared_error(outputs, batch.labels)
        mean = _mean(errors, _weights(batch, errors))
        return mean + carry, {"loss": mean}

    return loss


def with_l2(loss: Loss, strength: float | Array) -> Loss:
    """Adds (strength / 2) |weights|^2 to a loss; its metrics stay those of the data.

    Args:
      loss: any `(params, batch, key) -> (scalar, metrics)`.
      strength: >= 0. Of a variables dict only "params" is regularised, no running statistics.

    Raises:
      TypeError: `loss` cannot be called.
      ValueError: `strength` is negative or not finite.
    """
    validation.function("loss", loss, "Make one for example with dflax.losses.classification.")
    validation.real("strength", strength, low=0.0)

    def regularized(
        params: Params, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        value, metrics = loss(params, batch, key)
        whole = isinstance(params, Mapping) and "params" in params
        weights = params["params"] if whole else params
        return value + 0.5 * strength * optax.tree.norm(weights, squared=True), metrics

    return regularized


def _weights(batch: Batch, losses: Array) -> Float[Array, "B ..."]:
    """The mask, or ones, broadcast to the shape of the losses."""
    if batch.mask is None:
        return jnp.ones_like(losses)
    if batch.mask.shape != losses.shape[:1]:
        raise ValueError(
            f"mask must have one weight per example, shape {losses.shape[:1]}, got "
            f"{batch.mask.shape}."
        )
    mask = batch.mask.astype(losses.dtype)
    return jnp.broadcast_to(mask.reshape(-1, *(1,) * (losses.ndim - 1)), losses.shape)


def _mean(values: Float[Array, "B ..."], weights: Float[Array, "B ..."]) -> Float[Array, ""]:
    """Weighted mean, zero when all weights are zero."""
    total = jnp.sum(weights)
    return jnp.sum(values * weights) / jnp.where(total > 0, total, 1.0)


def _check_logits(logits: Any, labels: Array) -> None:
    if logits.shape[:-1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers with the shape of the logits less their last axis, "
            f"{logits.shape[:-1]}, got {labels.dtype} {labels.shape}."
        )
