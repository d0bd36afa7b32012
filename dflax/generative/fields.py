"""Fields: a network with its parameters, as samplers ask it; guidance makes one of one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.generative.targets import Target
from dflax.models.apply import Model, as_apply
from dflax.models.diffusion.noised import Noised

Field = Callable[[Noised, Key[Array, ""]], Float[Array, "B ..."]]


def field(model: Model, params: Params) -> Field:
    """A trained network as samplers ask it: `(noised, key) -> prediction`, in evaluation.

    Args:
      model: see `dflax.models.as_apply`; its inputs are a `dflax.models.Noised`.
      params: its parameters; for good samples the averaged ones, see `averaged`.

    Raises:
      TypeError: naming the argument.
    """
    apply = as_apply(model)
    validation.model("params", params)
    return lambda noised, key: apply(params, noised)


def guided(field: Field, scale: float | Float[Array, ""], null: PyTree[Array] | int) -> Field:
    """Classifier-free guidance: `field(null) + scale (field(condition) - field(null))`.

    Args:
      field: of a network that was trained with dropped conditions.
      scale: 0 ignores the condition, 1 follows it, more exaggerates it; traceable.
      null: the condition that stood for none in training.

    Returns:
      A field of twice the work.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Ho and Salimans, Classifier-Free Diffusion Guidance, arXiv 2207.12598.
    """
    validation.function("field", field, "It gets a Noised and a key.", takes=2)
    validation.real("scale", scale, scalar=True)
    validation.arrays("null", null, some=True)

    def both(noised: Noised, key: Key[Array, ""]) -> Float[Array, "B ..."]:
        if noised.condition is None:
            raise ValueError("condition must be given where guidance is wanted, got None.")
        nothing: Any = jax.tree.map(
            lambda leaf, none: jnp.broadcast_to(jnp.asarray(none, leaf.dtype), leaf.shape),
            noised.condition,
            null,
        )
        without = field(noised._replace(condition=nothing), key)
        return without + scale * (field(noised, key) - without)

    return both


def check_field(name: str, value: Any) -> None:
    """Refuse what is no function of noised examples and a key."""
    validation.function(
        name, value, "Make one with dflax.generative.field(model, params).", takes=2
    )


def check_target(target: Target) -> None:
    """Refuse what is no function of a path and times."""
    fix = "Take one of dflax.generative.targets, such as velocity."
    validation.function("target", target, fix, takes=2)
