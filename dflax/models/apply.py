"""Models of every library as one kind of function of parameters and inputs."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.models.adapters.adapter import Apply, Training
from dflax.models.adapters.from_linen import from_linen

# Of other libraries: callables, or tuples of functions or of a module and its state.
Model = nn.Module | Callable[..., Any] | tuple[Any, ...]


def as_apply(model: Model, *, training: Training | None = None) -> Apply:
    """A uniform `apply(params, inputs, key=None) -> outputs` of a model of any library.

    With a key the model is in training: the key feeds its dropout, and its running statistics move.
    Without one it is in evaluation. `params` is `{"params": weights, "batch_stats": statistics}`, see
    `variables`, or the bare weights where there are no statistics. What is understood:

    - a `flax.linen` module, or its bound `module.apply`;
    - an `nnx.Module`: `nnx.Param` is weights, `nnx.BatchStat` statistics; `train()` and `eval()` switch;
    - an `equinox.Module`, called for one example at a time as `(x)`, `(x, key=key)`, or
      `(x, state, key=key)`; with state it is the pair that `eqx.nn.make_with_state(Net)(...)` returns;
    - what `hk.transform` and `hk.transform_with_state` of haiku return;
    - a function `f(params, inputs)` or `f(params, inputs, key)`: a third argument named `key` or
      `rng`, or any third one without default, gets the key or None.

    A linen module has no switch of its own: `train=True`, `training=True`, `deterministic=False` and
    `use_running_average=False` are tried if its `__call__` knows them, `is_training=True` in haiku.
    Whether they did what they promise is looked at when a step is first traced: a model with
    Dropout or BatchNorm that stays in evaluation is refused. `training` names another switch.

    Args:
      model: as above; an `Apply` is handed back.
      training: the switch: the name of the argument of the model's call that is True in training,
        or a dict of names and their values in training (negated in evaluation), for example
        `{"frozen": False}`. `{}`: nothing switches, and that is meant.

    Raises:
      TypeError: `model` cannot be called as above.
      ValueError: `training` names no argument; the model needs arguments that nobody fills.

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> apply = dx.models.as_apply(lambda params, inputs: inputs @ params)
      >>> apply(jnp.ones((3, 2)), jnp.ones((4, 3))).shape
      (4, 2)
    """
    if (known := _of_library(model, training)) is not None:
        return known
    validation.function(
        "model",
        model,
        "Pass a linen, nnx or equinox module, a haiku transform, or a function (params, inputs).",
    )
    if training is not None:
        raise ValueError(
            f"training must be left out for a function, got {validation.shown(training)}. A function "
            "(params, inputs, key) is in training when key is not None."
        )
    assert callable(model), "refused above"
    return _from_function(model)


def as_module(name: str, model: Model) -> Apply:
    """As `as_apply`, of what holds running statistics: refuses a function of its parameters.

    Args:
      name: the argument's name, for the message.
      model: a module or a haiku transform.

    Raises:
      TypeError: anything else.
    """
    known = _of_library(model, None)
    if known is None:
        raise TypeError(
            f"{name} must be a module or a haiku transform here, got {validation.shown(model)}. Of a "
            "function of its parameters neither their start nor running statistics are known."
        )
    return known


def _of_library(model: Any, training: Training | None) -> Apply | None:
    """The model of a library that is known; None of anything else, a function for example."""
    if isinstance(model, Apply):
        if training is not None:
            raise ValueError("training must be said where the model is given, got it of an Apply.")
        return model
    owner = getattr(model, "__self__", None)
    if isinstance(owner, nn.Module) and getattr(model, "__name__", "") == "apply":
        model = owner
    if isinstance(model, nn.Module):
        return from_linen(model, training)
    if (nnx := sys.modules.get("flax.nnx")) and isinstance(model, nnx.Module):
        from dflax.models.adapters.from_nnx import from_nnx

        return from_nnx(model, training)
    if eqx := sys.modules.get("equinox"):
        module, state = model if isinstance(model, tuple) and len(model) == 2 else (model, None)
        if isinstance(module, eqx.Module) and isinstance(state, eqx.nn.State | None):
            from dflax.models.adapters.from_equinox import from_equinox

            return from_equinox(module, state, training)
    if (hk := sys.modules.get("haiku")) and isinstance(
        model, hk.Transformed | hk.TransformedWithState
    ):
        from dflax.models.adapters.from_haiku import from_haiku

        return from_haiku(model, training)
    return None


def variables(
    model: Model, key: Key[Array, ""] | None = None, inputs: PyTree[Array] | None = None
) -> Params:
    """What algorithms start from: `{"params": weights, "batch_stats": statistics}` of a model.

    "batch_stats" is absent where there are none. Counters and flags among statistics are float32.

    Args:
      model: see `as_apply`. Modules of nnx and equinox hold their own values; linen modules and
        haiku transforms are initialised.
      key: typed; of linen and haiku.
      inputs: an example batch; of linen and haiku.

    Raises:
      TypeError: the model is a function, or `key` is no key where one is needed.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> model = dx.models.MLP((8,), classes=3)
      >>> started = dx.models.variables(model, jax.random.key(0), jnp.zeros((1, 5)))
      >>> list(started)
      ['params']
    """
    apply = as_apply(model)
    if inputs is not None:
        validation.arrays("inputs", inputs)
        validation.leading_axis("inputs", inputs, least=1)
    return apply.variables(key, inputs)


def with_variables(model: Model, variables: Params, inputs: PyTree[Array] | None = None) -> Any:
    """A trained model as its library holds it; the inverse of `variables`. `model` stays as it is.

    Args:
      model: see `as_apply`.
      variables: of the same model, trained.
      inputs: an example batch; of haiku transforms with state.

    Returns:
      nnx: a new module. equinox: the module, or the pair of module and state. haiku: the params, or
      the pair of params and state. linen: the variables.

    Raises:
      TypeError: the model is a function, `variables` no model, or `inputs` no batch.
    """
    apply = as_apply(model)
    validation.model("variables", variables)
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise TypeError(
            f'variables must be a dict with "params", got {validation.shown(variables)}. Pass what '
            "training made of dflax.models.variables(model)."
        )
    if inputs is not None:
        validation.arrays("inputs", inputs)
    return apply.fill(variables, inputs)


def _from_function(function: Callable[..., PyTree[Array]]) -> Apply:
    parameters, open_ended = [], False
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # builtins without a signature
        open_ended = True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    open_ended = open_ended or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(required) > 3 or (len(positional) < 2 and not open_ended):
        raise TypeError(
            "model must be a function (params, inputs) or (params, inputs, key), got one with the "
            f"arguments ({', '.join(p.name for p in parameters)}). Wrap it in a lambda."
        )
    third = positional[2] if len(positional) > 2 else None
    wants_key = third is not None and (third.name in ("key", "rng") or third in required)
    by_name = next((p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name == "key"), "")

    def forward(
        params: Params, inputs: PyTree[Array], key: Key[Array, ""] | None
    ) -> tuple[PyTree[Array], Float[Array, ""]]:
        if wants_key:
            return function(params, inputs, key), jnp.zeros(())
        named: dict[str, Any] = {by_name: key} if by_name else {}
        return function(params, inputs, **named), jnp.zeros(())

    def unknown(*given: Any) -> Any:
        raise TypeError(
            "model must be a module or a haiku transform here, got a function of its parameters, of "
            "which neither their start nor running statistics are known."
        )

    return Apply(forward, calibrate=unknown, variables=unknown, fill=unknown)
