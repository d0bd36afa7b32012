"""Epochs of minibatches over what a rollout gathered."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Metrics, Params

Objective = Callable[[Params, Any, Key[Array, ""]], tuple[Float[Array, ""], Metrics]]


def epochs_of(
    loss: Objective,
    optimizer: optax.GradientTransformation,
    params: Params,
    memory: PyTree[Array],
    samples: PyTree[Array],
    key: Key[Array, ""],
    *,
    epochs: int,
    minibatches: int,
) -> tuple[Params, PyTree[Array], Metrics]:
    """Steps of an optimiser on minibatches of the samples, dealt anew in each epoch.

    Args:
      loss: `(params, minibatch, key) -> (loss, metrics)`.
      optimizer: an optax optimiser.
      params: what is trained.
      memory: the optimiser's state.
      samples: leaves `[N, ...]`; N must be a multiple of `minibatches`.
      key: a typed key.
      epochs: >= 1.
      minibatches: >= 1 in each epoch; 1: all samples at once, as they lie.

    Returns:
      The parameters, the optimiser's state, and the metrics' means over all steps, with `loss`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.function("loss", loss, "It gets parameters, a minibatch and a key.", takes=3)
    validation.instance("optimizer", optimizer, optax.GradientTransformation)
    validation.model("params", params)
    wanted: Any = jax.tree.structure(jax.eval_shape(optimizer.init, params))
    given: Any = jax.tree.structure(memory)
    if given != wanted:
        raise ValueError(
            f"memory must be the optimiser's state, of {wanted.num_leaves} arrays, got "
            f"{validation.shown(memory)}. Begin with optimizer.init(params)."
        )
    validation.arrays("memory", memory)
    validation.arrays("samples", samples)
    validation.typed_key("key", key)
    validation.integer("epochs", epochs, low=1)
    validation.integer("minibatches", minibatches, low=1)
    count = validation.leading_axis("samples", samples)
    if count % minibatches:
        raise ValueError(
            f"minibatches must divide the number of samples, {count}, got {minibatches}."
        )

    def update(carry: Any, row: Any) -> tuple[Any, Metrics]:
        params, memory = carry
        batch, key = row
        (value, measured), slope = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        updates, memory = optimizer.update(slope, memory, params)
        return (optax.apply_updates(params, updates), memory), {"loss": value, **measured}

    def epoch(carry: Any, key: Key[Array, ""]) -> tuple[Any, Metrics]:
        deal_key, loss_key = jax.random.split(key)
        keys = jax.random.split(loss_key, minibatches)
        if minibatches == 1:
            carry, measured = update(carry, (samples, keys[0]))
            return carry, measured
        order = jax.random.permutation(deal_key, count).reshape(minibatches, -1)

        def one(carry: Any, row: Any) -> tuple[Any, Metrics]:
            chosen = jax.tree.map(lambda leaf: jnp.take(leaf, row[0], axis=0), samples)
            return update(carry, (chosen, row[1]))

        return jax.lax.scan(one, carry, (order, keys))

    (params, memory), measured = jax.lax.scan(
        epoch, (params, memory), jax.random.split(key, epochs)
    )
    return params, memory, jax.tree.map(jnp.mean, measured)
