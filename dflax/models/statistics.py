"""Batch normalisation without plumbing: running statistics travel among the parameters."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.data.dataset import Dataset
from dflax.models.apply import Model, as_module
from dflax.models.averaged import STATISTICS

Variables = dict[str, PyTree[Array]]


class Apart(optax.GradientTransformationExtraArgs):
    """An optimiser that keeps statistics apart, see `with_statistics`."""


def with_statistics(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser of a whole variables dict: weights by `optimizer`, statistics by assignment.

        weights    <- optimizer(weights)
        statistics <- statistics - "gradient" of them

    A training loss of `dflax.losses` has, with respect to "batch_stats", the gradient old - new, so
    that the second line is statistics = new, exactly flax's mutable update: whatever the rate, the
    momentum or the weight decay. Every algorithm here does this to the optimisers it is given; the
    function is for loops of your own. Of models without "batch_stats" it changes nothing. Proximal
    terms and duals of algorithms leave statistics alone.

    Args:
      optimizer: of everything but "batch_stats"; one that is already apart is handed back.

    Raises:
      TypeError: `optimizer` is no optax transformation.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"optimizer must be an optax.GradientTransformation, got {validation.shown(optimizer)}. "
            "Make one for example with optax.sgd(0.1)."
        )
    if isinstance(optimizer, Apart):
        return optimizer
    inner = optax.with_extra_args_support(optimizer)

    def update(
        gradients: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, Any]:
        if not _has_statistics(gradients):
            return inner.update(gradients, state, params, **extra)
        own = None if params is None else weights_of(params)
        given = {name: _of_weights(value, params) for name, value in extra.items()}
        updates, state = inner.update(weights_of(gradients), state, own, **given)
        moved = jax.tree.map(jnp.negative, gradients[STATISTICS])
        return {**updates, STATISTICS: moved}, state

    return Apart(lambda params: inner.init(weights_of(params)), update)


def recalibrate(
    model: Model,
    variables: Variables,
    data: Dataset,
    *,
    batches: int = 32,
    batch_size: int = 128,
    key: Key[Array, ""] | None = None,
) -> Variables:
    """Estimates the running statistics afresh for given weights, as one does after averaging models.

    statistics = (1 / T) sum_{t=1..T} (mean, variance) of minibatch t, layer by layer, where every
    layer sees inputs normalised with the minibatch's own statistics. Dropout is off and the weights
    stay as they are. A pure function of arrays: put it under `jax.jit` when it is called often.

    Args:
      model: a module with batch normalisation, see `dflax.models.as_apply`. A haiku function must
        have no dropout here.
      variables: its whole variables dict, with "batch_stats".
      data: training examples.
      batches: T, >= 1; reduced when the data set has fewer whole batches.
      batch_size: examples in a batch, >= 1; reduced to the size of the data set.
      key: draws the examples without replacement; None takes the first ones.

    Returns:
      The variables dict with new "batch_stats".

    Raises:
      TypeError: `model` is a function of its parameters, or `data` no Dataset.
      ValueError: no "batch_stats", or a count out of range.

    References:
      Zhu et al., A Single Merging Suffices, arXiv 2507.06542.
    """
    apply = as_module("model", model)
    if not isinstance(data, Dataset):
        raise TypeError(f"data must be a Dataset, got {type(data).__name__}.")
    _require_statistics(variables)
    validation.integer("batches", batches, low=1)
    validation.integer("batch_size", batch_size, low=1)
    if key is not None:
        validation.typed_key("key", key)
    size = min(batch_size, len(data))
    count = min(batches, len(data) // size)
    order = jnp.arange(len(data)) if key is None else jax.random.permutation(key, len(data))
    rows = order[: count * size].reshape(count, size).astype(jnp.int32)
    return recalibrate_on(apply, variables, data, rows)


def recalibrate_on(
    model: Model, variables: Variables, data: Dataset, rows: Int[Array, "T B"]
) -> Variables:
    """As `recalibrate`, on the given minibatches, for example of one client: `rows` `[T, B]`."""
    apply = as_module("model", model)
    validation.instance("data", data, Dataset, "Of a Split pass its .train.")
    _require_statistics(variables)
    validation.array("rows", rows, kind="integer", shape=("T", "B"), low=0, high=len(data) - 1)
    count = rows.shape[0]

    def add(total: PyTree[Array], indices: Array) -> tuple[PyTree[Array], None]:
        _, batch = apply.calibrate(variables, data.fetch(indices).inputs)
        return jax.tree.map(lambda t, b: t + b / count, total, batch), None

    empty = jax.tree.map(jnp.zeros_like, variables[STATISTICS])
    statistics, _ = jax.lax.scan(add, empty, rows)
    return {**variables, STATISTICS: statistics}


def weights_of(tree: Params) -> Params:
    """A variables dict without its running statistics; any other tree as it is."""
    if not _has_statistics(tree):
        return tree
    return {name: part for name, part in tree.items() if name != STATISTICS}


def _of_weights(value: Any, params: Params) -> Any:
    """What else an optimiser is given, a gradient or an objective, as one of the weights alone."""
    if not callable(value):
        return weights_of(value)

    def objective(weights: Params) -> Any:
        return value({**weights, STATISTICS: params[STATISTICS]})

    return objective


def _has_statistics(tree: Params) -> bool:
    return isinstance(tree, dict) and STATISTICS in tree


def _require_statistics(variables: Any) -> None:
    if not isinstance(variables, Mapping) or not {"params", STATISTICS} <= set(variables):
        names = sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(
            'variables must be a dict with "params" and "batch_stats", got '
            f"{names}. Pass the whole result of model.init."
        )
