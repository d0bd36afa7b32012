"""Losses `(params, batch, key) -> (scalar, metrics)`, means over a batch that respect its mask.

`key` is a typed key in training and None in evaluation; loss and metrics share one forward pass.

| what is learned | losses |
|---|---|
| one class of several | `classification`; `balanced` where classes are of unequal size |
| any number of labels at once, or yes and no | `multi_label` |
| numbers | `squared_error`, `absolute_error`, `huber`; `quantile` |
| the next token, or tokens that were masked | `language_modelling` |
| anything else | `from_examples`, which all of these are made with |

`with_l2` adds a penalty to any of them, `split_batch` spreads one over devices that share a model.
Losses of a family are with it: `dflax.experts`, `dflax.generative`, `dflax.inference.selection`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import MODEL, against, model_devices
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss
from dflax.models.apply import Model, as_apply

PerExample = Callable[[Array, Batch], dict[str, Float[Array, "B ..."]]]


def classification(model: Model, *, label_smoothing: float | Array = 0.0) -> Loss:
    """Mean softmax cross-entropy of class scores.

    With scores z and target distribution q = (1 - s) onehot(y) + s / C:
    `loss = - mean over examples of sum_c q_c log softmax(z)_c`.

    Args:
      model: see `dflax.models.as_apply`; gives scores `[B, ..., C]` for integer labels `[B, ...]`
        in [0, C). The loss of an example with another label is NaN.
      label_smoothing: s in [0, 1); traceable.

    Returns:
      A loss with the metrics "loss" (as above) and "accuracy".

    Raises:
      TypeError: `model` cannot be called.
      ValueError: `label_smoothing` is out of range.

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> model = lambda params, inputs: params * inputs
      >>> batch = dx.data.Batch(jnp.array([[2.0, 0.0], [0.0, 2.0]]), jnp.array([0, 0]))
      >>> loss, metrics = dx.losses.classification(model)(jnp.float32(1), batch, None)
      >>> round(float(loss), 3), float(metrics["accuracy"])
      (1.127, 0.5)
    """
    validation.real(
        "label_smoothing", label_smoothing, low=0.0, high=1.0, high_open=True, scalar=True
    )

    def per_example(scores: Array, batch: Batch) -> dict[str, Array]:
        measures = _cross_entropy(scores, batch.labels)
        if _present(label_smoothing):
            uniform = -jnp.mean(jax.nn.log_softmax(_widened(scores)), axis=-1)
            kept = (1.0 - label_smoothing) * measures["loss"]
            measures["loss"] = kept + label_smoothing * uniform
        return measures

    return from_examples(model, per_example)


def adjusted(
    scores: Float[Array, "... C"], counts: Array, strength: float | Array = 1.0
) -> Float[Array, "... C"]:
    """Scores moved by the classes' frequencies: `scores_c + strength log n_c`, absent classes masked.

    A class with n_c = 0 gets -1e30, which stands for minus infinity: its probability and its gradient
    are 0, and nothing is 0 times infinity.

    Args:
      scores: class scores.
      counts: n, `[C]` examples of each class, >= 0; traceable.
      strength: >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    if not isinstance(scores, jax.Array):
        scores = jnp.asarray(validation.array("scores", scores, kind="real"))
    if not scores.ndim or not scores.shape[-1]:
        raise ValueError(f"scores must have the shape [..., C], got {scores.shape}.")
    shape = scores.shape[-1:]
    counts = jnp.asarray(validation.array("counts", counts, kind="real", shape=shape, low=0.0))
    validation.real("strength", strength, low=0.0, scalar=True)
    known = counts > 0
    moved = _widened(scores) + strength * _widened(jnp.log(jnp.where(known, counts, 1)))
    return jnp.where(known, moved, -1e30)


def balanced(model: Model, counts: Array, *, strength: float | Array = 1.0) -> Loss:
    """Balanced softmax: the cross-entropy of scores that are moved by the classes' frequencies.

        loss = - mean over examples of log softmax(z + strength log n)_y

    Frequent classes are then no more likely by their number alone, and a class with n_c = 0 takes no
    part. With equal counts it is `classification`. The loss of a label with n_c = 0 is no number that
    means anything (about 1e30).

    Args:
      model: gives scores z `[B, C]`, see `dflax.models.as_apply`.
      counts: n, `[C]` examples of each class, >= 0; traceable.
      strength: >= 0; traceable.

    Returns:
      A loss with the metrics "loss" (as above) and "accuracy" (of the moved scores).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition, arXiv 2007.10740.
    """
    counts = jnp.asarray(validation.array("counts", counts, kind="real", shape=("C",), low=0.0))
    validation.real("strength", strength, low=0.0, scalar=True)

    def per_example(scores: Array, batch: Batch) -> dict[str, Array]:
        return _cross_entropy(adjusted(scores, counts, strength), batch.labels)

    return from_examples(model, per_example)


def language_modelling(model: Model) -> Loss:
    """Mean cross-entropy of the tokens that follow.

    `loss = - mean over b, t with y[b, t] >= 0 of log softmax(z[b, t])_{y[b, t]}`.

    The labels y are the next tokens: of sequences `[B, L + 1]`, inputs are `tokens[:, :-1]` and labels
    `tokens[:, 1:]`. Negative labels (padding) do not count. Perplexity is exp of the mean
    loss, which is no mean over batches, so it is no metric here.

    Args:
      model: gives scores z `[B, L, V]` for tokens `[B, L]`. The loss of a label >= V is NaN.

    Returns:
      A loss with the metrics "loss" (in nats per token) and "accuracy" of the most likely token.

    Raises:
      TypeError: `model` cannot be called.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> model = lambda params, tokens: params * jax.nn.one_hot(tokens, 3)
      >>> tokens = jnp.array([[0, 0, 1, 1]])
      >>> batch = dx.data.Batch(tokens[:, :-1], tokens[:, 1:])
      >>> loss, metrics = dx.losses.language_modelling(model)(jnp.float32(5), batch, None)
      >>> round(float(metrics["accuracy"]), 3)
      0.667
    """

    def per_example(scores: Array, batch: Batch) -> dict[str, Array]:
        counted = batch.labels >= 0
        measures = _cross_entropy(scores, jnp.where(counted, batch.labels, 0))
        return {**measures, "weight": counted.astype(jnp.float32)}

    return from_examples(model, per_example)


def squared_error(model: Model) -> Loss:
    """Half the mean squared error: `mean over examples of (1/2) |prediction - label|^2`.

    Args:
      model: gives predictions of the labels' shape `[B, ...]` (a last axis of length 1 is dropped
        where the labels have none).

    Returns:
      A loss with the metric "loss".

    Raises:
      TypeError: `model` cannot be called.

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> model = lambda params, inputs: params * inputs
      >>> batch = dx.data.Batch(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
      >>> loss, _ = dx.losses.squared_error(model)(jnp.float32(1), batch, None)
      >>> float(loss)
      1.0
    """

    def per_example(predictions: Array, batch: Batch) -> dict[str, Array]:
        squares = optax.l2_loss(_like_labels(predictions, batch.labels), _widened(batch.labels))
        return {"loss": squares.reshape(squares.shape[0], -1).sum(1)}

    return from_examples(model, per_example)


def absolute_error(model: Model) -> Loss:
    """The mean absolute error: `mean over examples of |prediction - label|_1`.

    Args:
      model: gives predictions as for `squared_error`.

    Returns:
      A loss with the metric "loss".

    Raises:
      TypeError: `model` cannot be called.
    """

    def per_example(predictions: Array, batch: Batch) -> dict[str, Array]:
        errors = jnp.abs(_like_labels(predictions, batch.labels) - _widened(batch.labels))
        return {"loss": errors.reshape(errors.shape[0], -1).sum(1)}

    return from_examples(model, per_example)


def huber(model: Model, *, delta: float | Array = 1.0) -> Loss:
    """The mean Huber loss, squared near the label and linear far from it, so that outliers pull less.

    With e = prediction - label, `loss = mean over examples of sum over entries of h(e)`, where
    `h(e) = e^2 / 2` for |e| <= delta and `delta (|e| - delta / 2)` beyond.

    Args:
      model: gives predictions as for `squared_error`.
      delta: > 0, in the unit of the labels; traceable.

    Returns:
      A loss with the metric "loss".

    Raises:
      TypeError: `model` cannot be called.
      ValueError: `delta` is out of range.
    """
    validation.real("delta", delta, low=0.0, low_open=True, scalar=True)

    def per_example(predictions: Array, batch: Batch) -> dict[str, Array]:
        errors = _like_labels(predictions, batch.labels) - _widened(batch.labels)
        near = jnp.minimum(jnp.abs(errors), delta)
        values = near * (jnp.abs(errors) - 0.5 * near)
        return {"loss": values.reshape(values.shape[0], -1).sum(1)}

    return from_examples(model, per_example)


def quantile(model: Model, level: float | Array) -> Loss:
    """The mean pinball loss, least where the prediction is the labels' quantile of a level.

    With e = label - prediction, `loss = mean over examples of sum over entries of
    max(level e, (level - 1) e)`. At 0.5 it is half the absolute error, and predicts the median.

    Args:
      model: gives predictions as for `squared_error`.
      level: in (0, 1); traceable.

    Returns:
      A loss with the metrics "loss" and "below", the share of labels below the prediction, which is
      `level` where the model is calibrated.

    Raises:
      TypeError: `model` cannot be called.
      ValueError: `level` is out of range.
    """
    validation.probability("level", level, low_open=True, high_open=True)

    def per_example(predictions: Array, batch: Batch) -> dict[str, Array]:
        errors = _widened(batch.labels) - _like_labels(predictions, batch.labels)
        values = jnp.maximum(level * errors, (level - 1.0) * errors)
        below = (errors < 0).astype(values.dtype)
        rows = values.shape[0]
        return {"loss": values.reshape(rows, -1).sum(1), "below": below.reshape(rows, -1).mean(1)}

    return from_examples(model, per_example)


def multi_label(model: Model, *, positive_weight: float | Array = 1.0) -> Loss:
    """Binary cross-entropy of labels that hold or do not hold, any number of them at once.

    With scores z and labels y in {0, 1}, or probabilities in [0, 1]:
    `loss = - mean over examples and labels of p y log sigmoid(z) + (1 - y) log sigmoid(-z)`.

    Args:
      model: gives scores z of the labels' shape `[B, ...]`; for one question with yes and no, a last
        axis of length 1 is dropped where the labels have none. The loss of a label outside [0, 1] is
        NaN.
      positive_weight: p > 0, how much a label that holds counts beside one that does not: above 1 where
        few hold. A number, or `[L]`, one for each label; traceable.

    Returns:
      A loss with the metrics "loss" (as above), "accuracy" (the share of labels that are right, which
      hold where z > 0), and "exact" (the share of examples of which all labels are right).

    Raises:
      TypeError: `model` cannot be called.
      ValueError: `positive_weight` is out of range; when traced, shapes that do not fit.
    """
    validation.real("positive_weight", positive_weight, low=0.0, low_open=True)
    if np.ndim(positive_weight) > 1:
        raise ValueError(
            "positive_weight must be a number or one for each label, got the shape "
            f"{np.shape(positive_weight)}."
        )

    def per_example(scores: Array, batch: Batch) -> dict[str, Array]:
        wide, labels = _like_labels(scores, batch.labels), _widened(batch.labels)
        weight = jnp.asarray(positive_weight, wide.dtype)
        if weight.ndim and weight.shape != wide.shape[-1:]:
            raise ValueError(
                f"positive_weight must have one weight for each of the {wide.shape[-1]} labels, got "
                f"{weight.shape[0]}."
            )
        gains = weight * labels * jax.nn.log_sigmoid(wide)
        losses = -(gains + (1.0 - labels) * jax.nn.log_sigmoid(-wide))
        losses = jnp.where((labels >= 0) & (labels <= 1), losses, jnp.nan)
        right = ((wide > 0) == (labels > 0.5)).astype(wide.dtype)
        rows = wide.shape[0]
        right = right.reshape(rows, -1)
        return {
            "loss": losses.reshape(rows, -1).mean(1),
            "accuracy": right.mean(1),
            "exact": right.min(1),
        }

    return from_examples(model, per_example)


def with_l2(loss: Loss, strength: float | Array) -> Loss:
    """Adds `(strength / 2) |weights|^2`; the metrics gain "l2", the penalty, and "loss" stays bare.

    Args:
      loss: any loss.
      strength: >= 0; traceable. Of a whole variables dict only "params" is regularised.

    Raises:
      TypeError: `loss` cannot be called.
      ValueError: `strength` is negative or not finite.

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> loss = dx.losses.with_l2(lambda params, batch, key: (jnp.float32(1), {}), 0.1)
      >>> value, metrics = loss({"params": jnp.array([3.0, 4.0])}, None, None)
      >>> float(value), float(metrics["l2"])
      (2.25, 1.25)
    """
    validation.function("loss", loss, "Make one for example with dflax.losses.classification.")
    validation.real("strength", strength, low=0.0, scalar=True)

    def penalised(
        params: Params, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        value, metrics = loss(params, batch, key)
        whole = isinstance(params, Mapping) and "params" in params
        weights = params["params"] if whole else params
        penalty = 0.5 * strength * optax.tree.norm(jax.tree.map(_widened, weights), squared=True)
        return value + penalty, metrics | {"l2": penalty}

    return penalised


def split_batch(loss: Loss) -> Loss:
    """The loss of a minibatch whose examples the devices that share a model split among them.

    For `dflax.client_mesh(model=p)`, where layers are split by what they put out and exchange
    activations. Split by examples they exchange weights, which convolutions have few of: what a CNN's
    layers send falls to a half on TPUs and to 0.3 on GPUs (docs/pods.md). Where weights are larger than
    a minibatch's activations, as a transformer's, more is sent, not less. Gradients are the same up to
    the order of sums.

    Args:
      loss: any loss.

    Returns:
      The loss; as it was on other meshes, and for minibatches that p does not divide.

    Raises:
      TypeError: `loss` cannot be called.
    """
    validation.function("loss", loss, "Make one for example with dflax.losses.classification.")

    def split(leaf: Array) -> Array:
        if model_devices() == 1 or len(leaf) % model_devices():
            return leaf
        others = (PartitionSpec.UNCONSTRAINED,) * (leaf.ndim - 1)
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(MODEL, *others))

    def of_split(
        params: Params, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        return loss(params, jax.tree.map(split, batch), key)

    return of_split


def from_examples(model: Model, per_example: PerExample) -> Loss:
    """A loss from what is measured on each example; what every loss here is made with.

    `metrics[name] = sum_b w_b values[name]_b / sum_b w_b`, w the mask, or ones; 0 where w is 0. Sums
    are in float32 or wider, of integers, booleans and half precision too.

    Args:
      model: see `dflax.models.as_apply`.
      per_example: `(outputs, batch) -> {"loss": [B, ...], name: [B, ...], ...}`; an entry "weight"
        `[B, ...]` multiplies the mask and is no metric.

    Returns:
      The loss, the mean of "loss", and the means of all entries as metrics. With running statistics
      among the params, its gradient with respect to them is old - new: the solver replaces them
      (`dflax.models.with_statistics`).

    Raises:
      TypeError: `model` or `per_example` cannot be called.
      ValueError: when traced, an entry without one value per example, or no "loss".

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> model = lambda params, inputs: params * inputs
      >>> hinge = lambda outputs, batch: {"loss": jnp.maximum(1 - batch.labels * outputs, 0)}
      >>> batch = dx.data.Batch(jnp.array([0.5, 2.0]), jnp.array([1.0, 1.0]))
      >>> loss, _ = dx.losses.from_examples(model, hinge)(jnp.float32(1), batch, None)
      >>> float(loss)
      0.25
    """
    apply = as_apply(model)
    validation.function("per_example", per_example)

    def loss(
        params: Params, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        outputs, carry = apply.forward(params, batch.inputs, key)
        measures = _measured(per_example(outputs, batch), batch)
        extra = measures.pop("weight", None)
        metrics = {name: _mean(values, batch.mask, extra) for name, values in measures.items()}
        return metrics["loss"] + carry, metrics

    return loss


def _cross_entropy(scores: Array, labels: Array) -> dict[str, Array]:
    _check_labels(scores, labels)
    # At least float32: the sum over many classes loses its tail in half precision.
    wide = _widened(scores)
    # The label's score is picked by comparison: looked up, its gradient would be a scatter, which on
    # a CPU costs more than the rest of a small model's step.
    classes = wide.shape[-1]
    places, label = jnp.arange(classes), labels[..., None]
    own = jnp.sum(jnp.where(places == label, wide, 0.0), axis=-1)
    losses = jax.nn.logsumexp(wide, axis=-1) - own
    # A label that no score belongs to (too narrow a model) would give a plausible number.
    known = (labels >= 0) & (labels < classes)
    losses = jnp.where(known, losses, jnp.nan)
    # The first of the largest scores is the label's: an argmax at half the price.
    best = jnp.where(places < label, wide < own[..., None], wide <= own[..., None])
    correct = known & jnp.all(best, axis=-1)
    return {"loss": losses, "accuracy": correct.astype(losses.dtype)}


def _widened(values: Array) -> Array:
    """Values in float32, or in their own type where that is wider: what sums are made of."""
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _check_labels(scores: Array, labels: Array) -> None:
    """Refuse labels that are no class numbers, and say how to make them some."""
    kind, shape = np.dtype(labels.dtype), np.shape(labels)
    wanted = scores.shape[:-1]
    if jnp.issubdtype(kind, jnp.integer) and shape == wanted:
        return
    fix = f"The model gives scores {scores.shape}."
    if kind.kind in "USO":
        fix = "Number them: classes, labels = np.unique(labels, return_inverse=True)."
    elif shape == scores.shape:
        fix = "Of one-hot rows take labels.argmax(-1)."
    elif not jnp.issubdtype(kind, jnp.integer) and shape == wanted:
        fix = "Take labels.astype(int32) if they are class numbers, or losses.squared_error."
    elif shape == (*wanted, 1):
        fix = "Take labels.squeeze(-1)."
    raise ValueError(
        "labels must be integers with the shape of the scores less their last axis, "
        f"{wanted}, got {kind} {shape}. {fix}"
    )


def _measured(measures: Any, batch: Batch) -> dict[str, Array]:
    """What was measured, wide enough to be summed, if it is of each example."""
    if not isinstance(measures, Mapping) or "loss" not in measures:
        found = sorted(measures) if isinstance(measures, Mapping) else type(measures).__name__
        raise ValueError(
            f'per_example must return a dict with an entry "loss", got {found}. For example '
            '{"loss": losses}, of shape [B].'
        )
    size = jax.tree.leaves((batch.inputs, batch.labels))[0].shape[0]
    for name, values in measures.items():
        if np.shape(values)[:1] != (size,):
            raise ValueError(
                f"per_example must give one value of {name!r} for each of the {size} examples, "
                f"[{size}, ...], got the shape {np.shape(values)}. Means are taken afterwards."
            )
    return {name: _widened(values) for name, values in measures.items()}


def _like_labels(predictions: Array, labels: Array) -> Array:
    """Predictions of the labels' shape; a last axis of length 1 is dropped where labels have none."""
    if predictions.ndim == labels.ndim + 1 and predictions.shape[-1] == 1:
        predictions = predictions[..., 0]
    if predictions.shape != labels.shape:
        raise ValueError(
            f"model must give predictions of the labels' shape {labels.shape}, got "
            f"{predictions.shape}. Reshape one of them."
        )
    return _widened(predictions)


def _mean(
    values: Float[Array, "B ..."],
    mask: Float[Array, " B"] | None,
    extra: Float[Array, "B ..."] | None,
) -> Float[Array, ""]:
    """Mean weighted by the mask and the extra weights, zero where they are zero everywhere."""
    if mask is None and extra is None:
        return jnp.mean(values)
    weights = jnp.ones_like(values) if extra is None else extra.astype(values.dtype)
    if mask is not None:
        if mask.shape != values.shape[:1]:
            raise ValueError(
                f"mask must have one weight per example, shape {values.shape[:1]}, got {mask.shape}."
            )
        weights = weights * against(mask, values).astype(values.dtype)
    total = jnp.sum(weights)
    # Selected rather than multiplied: what a padded example yields may not be finite.
    kept = jnp.where(weights > 0, values, 0.0) * weights
    return jnp.sum(kept) / jnp.where(total > 0, total, 1.0)


def _present(value: Any) -> bool:
    """Whether a hyper-parameter may differ from zero."""
    return isinstance(value, jax.Array) or bool(value)


__all__ = [
    "absolute_error",
    "adjusted",
    "balanced",
    "classification",
    "from_examples",
    "huber",
    "language_modelling",
    "multi_label",
    "quantile",
    "split_batch",
    "squared_error",
    "with_l2",
]


def __dir__() -> list[str]:
    return __all__
