"""Models of every library as one kind of function of parameters and inputs."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Params

Model = nn.Module | Callable[..., PyTree[Array]]

SWITCHES = {"train": True, "training": True, "deterministic": False}


class Apply(NamedTuple):
    """A model as a function; `apply(params, inputs, key=None)` gives its outputs.

    Attributes:
      forward: `(params, inputs, key) -> (outputs, carry)`. `key` None means evaluation, a key means
        training. `carry` is a scalar of value zero to be added to the loss: its gradient with
        respect to running statistics among `params` is old minus new statistics, see
        `dflax.models.statistics`.
    """

    forward: Callable[..., tuple[PyTree[Array], Float[Array, ""]]]

    def __call__(
        self, params: Params, inputs: PyTree[Array], key: Key[Array, ""] | None = None
    ) -> PyTree[Array]:
        """The outputs: evaluation without a key, training with one."""
        return self.forward(params, inputs, key)[0]


def as_apply(model: Model) -> Apply:
    """A uniform `apply(params, inputs, key=None) -> outputs` of a model of any library.

    What is understood:

    - a `flax.linen` module, or its bound `module.apply`. `params` is the bare "params" collection, or
      the whole variables dict if it has "params" as a top-level name. With a key the module is called
      with `train=True`, `training=True` or `deterministic=False`, whichever its `__call__` knows,
      and the key feeds its dropout;
    - a function `f(params, inputs)` or `f(params, inputs, key)`: a third argument named `key` or
      `rng`, or any third one without default, gets the key or None;
    - nnx: `graphdef, state = nnx.split(model)`, then `lambda p, x: nnx.merge(graphdef, p)(x)`;
    - equinox: `params, static = eqx.partition(model, eqx.is_array)`, then
      `lambda p, x: jax.vmap(eqx.combine(p, static))(x)`.

    Args:
      model: a linen module, its bound `apply`, or a function; an `Apply` is handed back.

    Raises:
      TypeError: `model` cannot be called as above.
    """
    if isinstance(model, Apply):
        return model
    owner = getattr(model, "__self__", None)
    if isinstance(model, nn.Module):
        return Apply(_linen(model))
    if isinstance(owner, nn.Module) and getattr(model, "__name__", "") == "apply":
        return Apply(_linen(owner))
    validation.function("model", model, "Pass a linen module or a function (params, inputs).")
    return Apply(_function(model))


def training_switches(module: nn.Module) -> dict[str, Any]:
    """The keyword arguments that put a linen module in training mode, such as `{"train": True}`."""
    known = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in SWITCHES.items() if name in known}


def _linen(module: nn.Module) -> Callable[..., tuple[PyTree[Array], Float[Array, ""]]]:
    switches = training_switches(module)

    def forward(
        params: Params, inputs: PyTree[Array], key: Key[Array, ""] | None
    ) -> tuple[PyTree[Array], Float[Array, ""]]:
        whole = isinstance(params, Mapping) and "params" in params
        variables = dict(params) if whole else {"params": params}
        options: dict[str, Any] = {
            name: value is (key is not None) for name, value in switches.items()
        }
        rngs = None if key is None else {"dropout": key}
        carries = key is not None and "batch_stats" in variables
        try:
            result = module.apply(
                variables,
                inputs,
                rngs=rngs,
                mutable=["batch_stats"] if carries else False,
                **options,
            )
        except (flax.errors.ScopeCollectionNotFound, flax.errors.ModifyScopeVariableError) as error:
            if "batch_stats" not in variables:
                raise ValueError(
                    "params must be the whole variables dict of a model with running statistics, got "
                    'a tree without "batch_stats". Pass variables = model.init(...) itself instead of '
                    'variables["params"], and an optimiser from dflax.models.with_statistics.'
                ) from error
            raise
        if not carries:
            return result, jnp.zeros(())
        outputs, updated = result
        return outputs, _carry(variables["batch_stats"], updated["batch_stats"])

    return forward


def _carry(old: PyTree[Array], new: PyTree[Array]) -> Float[Array, ""]:
    """Sum of (old - new) (old - stop(old)): zero, with the gradient old - new."""
    terms = jax.tree.map(
        lambda o, n: jnp.sum(jax.lax.stop_gradient(o - n) * (o - jax.lax.stop_gradient(o))),
        old,
        new,
    )
    return sum(jax.tree.leaves(terms), start=jnp.zeros(()))


def _function(
    function: Callable[..., PyTree[Array]],
) -> Callable[..., tuple[PyTree[Array], Float[Array, ""]]]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # builtins without a signature
        parameters = []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    open_ended = not parameters or any(p.kind is p.VAR_POSITIONAL for p in parameters)
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

    return forward
