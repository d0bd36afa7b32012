"""Batch normalisation without plumbing: running statistics travel among the parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.data.dataset import Dataset
from dflax.models.apply import training_switches

Variables = dict[str, PyTree[Array]]


def with_statistics(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser of a whole variables dict: weights by `optimizer`, statistics by assignment.

    A training loss of `dflax.losses` has, with respect to "batch_stats", the gradient old - new;
    gradient descent with rate 1 turns that into statistics = new, exactly flax's mutable update. The
    statistics must reach the optimiser unscaled: clip and regularise inside `optimizer`. Proximal terms
    and duals of algorithms leave them alone.

    Args:
      optimizer: for every collection but "batch_stats".

    Returns:
      A transformation whose `init` raises ValueError if the parameters have no "batch_stats".

    Raises:
      TypeError: `optimizer` is no optax transformation.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"optimizer must be an optax.GradientTransformation, got {validation.shown(optimizer)}. "
            "Make one for example with optax.sgd(0.1)."
        )

    def kinds(variables: Params) -> dict[str, str]:
        _require_statistics(variables)
        return {name: "statistics" if name == "batch_stats" else "weights" for name in variables}

    return optax.partition({"weights": optimizer, "statistics": optax.sgd(1.0)}, kinds)


def recalibrate(
    module: nn.Module,
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
      module: a linen module with `flax.linen.BatchNorm` layers and a `train`, `training` or
        `deterministic` switch.
      variables: its whole variables dict, with "batch_stats".
      data: training examples.
      batches: T, >= 1; reduced when the data set has fewer whole batches.
      batch_size: examples in a batch, >= 1; reduced to the size of the data set.
      key: draws the examples without replacement; None takes the first ones.

    Returns:
      The variables dict with new "batch_stats".

    Raises:
      TypeError: `module` is no linen module or `data` no Dataset.
      ValueError: no "batch_stats", or a count out of range.

    References:
      Zhu et al., A Single Merging Suffices, arXiv 2507.06542.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a flax.linen module, got {validation.shown(module)}.")
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
    return recalibrate_on(module, variables, data, rows)


def recalibrate_on(
    module: nn.Module, variables: Variables, data: Dataset, rows: Int[Array, "T B"]
) -> Variables:
    """As `recalibrate`, on the given minibatches, for example of one client: `rows` `[T, B]`."""
    count = rows.shape[0]
    weights = {name: tree for name, tree in variables.items() if name != "batch_stats"}
    switches = training_switches(module)

    def add(total: PyTree[Array], indices: Array) -> tuple[PyTree[Array], None]:
        inputs = data.fetch(indices).inputs

        def update(statistics: PyTree[Array]) -> PyTree[Array]:
            with nn.intercept_methods(skip_dropout):
                _, updated = module.apply(
                    {**weights, "batch_stats": statistics},
                    inputs,
                    mutable=["batch_stats"],
                    **switches,
                )
            return updated["batch_stats"]

        # An update reads new = momentum * old + (1 - momentum) * batch. Its value at old = 0 and its
        # slope give the batch's own statistics whatever momentum each layer has.
        zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
        ones = jax.tree.map(jnp.ones_like, variables["batch_stats"])
        share, momentum = jax.jvp(update, (zeros,), (ones,))
        batch = jax.tree.map(lambda s, m: s / (1.0 - m), share, momentum)
        return jax.tree.map(lambda t, b: t + b / count, total, batch), None

    empty = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    statistics, _ = jax.lax.scan(add, empty, rows)
    return {**variables, "batch_stats": statistics}


def _require_statistics(variables: Any) -> None:
    if not isinstance(variables, Mapping) or not {"params", "batch_stats"} <= set(variables):
        names = sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(
            'variables must be a dict with "params" and "batch_stats", got '
            f"{names}. Pass the whole result of model.init."
        )


def skip_dropout(
    call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any], context: Any
) -> Any:
    """An interceptor of linen methods (`flax.linen.intercept_methods`): dropout drops nothing."""
    if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
        return arguments[0]
    return call(*arguments, **options)
