"""The loss of a language model with mixtures of experts."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss
from dflax.losses import language_modelling
from dflax.models.moe.routing import Load, balance_loss, square_loss

# The scores stand for the model's parameters.
_OF_SCORES = language_modelling(lambda scores, inputs: scores)


def routed_language_modelling(
    model: nn.Module,
    *,
    balance: float | Float[Array, ""] = 0.01,
    router_z: float | Float[Array, ""] = 0.001,
    output_z: float | Float[Array, ""] = 1e-5,
) -> Loss:
    """Next-token cross-entropy, with what keeps routers even and scores small.

        loss = cross-entropy + balance * balance_loss + router_z * square_loss
               + output_z * mean over tokens of (log sum_v exp score_v)^2

    The first two extra terms are means over the layers that sow a `dflax.models.Load`.

    Args:
      model: a linen module of tokens `[B, L]` to scores `[B, L, V]`, for example
        `dflax.models.TransformerLM(mixture=...)`.
      balance: weight >= 0; traceable.
      router_z: weight >= 0; traceable.
      output_z: weight >= 0; traceable.

    Returns:
      A loss; its metrics are "loss" (the cross-entropy alone), "accuracy", "balance" and "router_z"
      (unweighted), "overflow" (pairs of a token and an expert dropped by a capacity, in a batch),
      "load" (`[layers, E]`, the share of a layer's pairs that each expert gets), "busiest" (the largest
      of a layer, mean over layers) and "router_entropy" (nats, mean over tokens and layers).

    Raises:
      TypeError, ValueError: naming the argument; when traced, a model without mixtures.
    """
    validation.instance("model", model, nn.Module, "For example dflax.models.TransformerLM.")
    for name, value in (("balance", balance), ("router_z", router_z), ("output_z", output_z)):
        validation.real(name, value, low=0.0, scalar=True)

    def loss(
        params: Params, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        variables = params if "params" in params else {"params": params}
        options: Any = {} if key is None else {"train": True, "rngs": {"dropout": key}}
        scores, sown = model.apply(variables, batch.inputs, mutable=["routing"], **options)
        layers = _layers(sown)
        value, metrics = _OF_SCORES(scores, batch, None)
        wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        large = jnp.mean(jnp.square(jax.nn.logsumexp(wide, axis=-1)))
        even, square = balance_loss(layers), square_loss(layers)
        share = layers.counts / layers.counts.sum(-1, keepdims=True)
        metrics = metrics | {
            "balance": even,
            "router_z": square,
            "overflow": layers.overflow.sum(),
            "load": share,
            "busiest": share.max(-1).mean(),
            "router_entropy": layers.entropy.mean(),
        }
        return value + balance * even + router_z * square + output_z * large, metrics

    return loss


def _layers(sown: Any) -> Load:
    """The loads of all layers, stacked."""
    loads = jax.tree.leaves(sown, is_leaf=lambda node: isinstance(node, Load))
    if not loads:
        raise ValueError(
            "model must have mixtures of experts, got one that sows no load into the collection "
            "routing. Pass mixture=dflax.models.MoE(...), or use dflax.losses.language_modelling."
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *loads)
