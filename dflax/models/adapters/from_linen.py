"""Models of flax.linen, whose training switch is an argument of the user's own `__call__`."""

import inspect
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.models.adapters.adapter import (
    Apply,
    Switches,
    Training,
    carry,
    missing_statistics,
    require_example,
    split_statistics,
    stands_still,
    switches,
)
from dflax.models.averaged import STATISTICS

# The names that flax's own layers and examples use. They are tried, and what the layers then did is
# looked at: a name that means something else is refused.
SWITCHES = {"train": True, "training": True, "deterministic": False, "use_running_average": False}

# The layers that behave differently in training, the argument that says so, the rate they drop with.
LAYERS: tuple[tuple[type[nn.Module], str, str], ...] = (
    (nn.Dropout, "deterministic", "rate"),
    (nn.BatchNorm, "use_running_average", ""),
    (nn.MultiHeadDotProductAttention, "deterministic", "dropout_rate"),
)


def linen_switches(module: nn.Module, training: Training | None = None) -> Switches:
    """The switches of a linen module."""
    return switches(type(module).__name__, type(module).__call__, training, SWITCHES, given=2)


def training_switches(module: nn.Module) -> dict[str, Any]:
    """The keyword arguments that put a linen module in training mode, such as `{"train": True}`."""
    return linen_switches(module).training


def from_linen(module: nn.Module, training: Training | None) -> Apply:
    """The adapter of a linen module, see `dflax.models.as_apply`."""
    switched = linen_switches(module, training)

    def forward(
        params: Params, inputs: PyTree[Array], key: Key[Array, ""] | None
    ) -> tuple[PyTree[Array], Float[Array, ""]]:
        weights, statistics = split_statistics(params)
        variables = {"params": params} if weights is params else dict(params)
        if statistics is not None:
            variables[STATISTICS] = statistics
        trains = key is not None
        seen: list[bool] = []
        try:
            with nn.intercept_methods(_watch(seen, switched, trains)):
                result = module.apply(
                    variables,
                    inputs,
                    rngs=None if key is None else _streams(key),
                    mutable=[STATISTICS] if trains and statistics is not None else False,
                    **switched.options(trains),
                )
        except (flax.errors.ScopeCollectionNotFound, flax.errors.ModifyScopeVariableError) as error:
            if statistics is None:
                missing_statistics(error)
            raise
        idle = trains and seen and not any(seen)
        if idle and not switched.waived:
            switched.refuse("a training pass in which no Dropout and no BatchNorm was in training")
        if not trains or statistics is None:
            return result, jnp.zeros(())
        outputs, updated = result
        if stands_still(statistics, updated[STATISTICS]) and not switched.waived:
            switched.refuse('a training pass that left all "batch_stats" as they were')
        return outputs, carry(params, updated[STATISTICS])

    def calibrate(params: Params, inputs: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        weights, statistics = split_statistics(params)
        if weights is params or statistics is None:
            missing_statistics()

        def update(old: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
            with nn.intercept_methods(skip_dropout):
                outputs, new = module.apply(
                    {**params, STATISTICS: old},
                    inputs,
                    mutable=[STATISTICS],
                    **switched.options(True),
                )
            return new[STATISTICS], outputs

        # An update reads new = momentum * old + (1 - momentum) * batch. Its value at old = 0 and its
        # slope give the batch's own statistics whatever momentum each layer has.
        zeros, ones = (jax.tree.map(make, statistics) for make in (jnp.zeros_like, jnp.ones_like))
        share, momentum, outputs = jax.jvp(update, (zeros,), (ones,), has_aux=True)
        return outputs, jax.tree.map(lambda s, m: s / (1.0 - m), share, momentum)

    def variables(key: Any, inputs: PyTree[Array] | None) -> Params:
        validation.typed_key("key", key)
        require_example(inputs)
        return dict(module.init(key, inputs, **switched.options(False)))

    return Apply(forward, calibrate, variables, lambda variables, inputs: variables)


def _streams(key: Key[Array, ""]) -> dict[str, Key[Array, ""]]:
    """Dropout's stream, and "params", on which flax falls back for streams of other names."""
    return {"dropout": key, "params": jax.random.fold_in(key, 1)}


def _watch(seen: list[bool], switched: Switches, trains: bool) -> Callable[..., Any]:
    """An interceptor of linen methods that notes for each layer whether it is in training."""

    def note(
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        layer = context.module
        if context.method_name == "__call__":
            works = _in_training(layer, arguments, options)
            if works and not trains:
                where = "/".join(layer.path) or type(layer).__name__
                switched.refuse(f"an evaluation in which {where} was in training")
            if works is not None:
                seen.append(works)
        return call(*arguments, **options)

    return note


def _in_training(layer: nn.Module, arguments: tuple[Any, ...], options: Any) -> bool | None:
    """Whether a layer was told to train; None if it knows no training, or cannot be asked."""
    for kind, field, rate in LAYERS:
        if isinstance(layer, kind):
            dropped = getattr(layer, rate) if rate else 1.0
            if isinstance(dropped, int | float) and dropped == 0:
                return None
            given = inspect.signature(type(layer).__call__).bind_partial(
                layer, *arguments, **options
            )
            said = given.arguments.get(field)
            rests = getattr(layer, field) if said is None else said
            return None if rests is None or isinstance(rests, jax.Array) else not rests
    return None


def skip_dropout(
    call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any], context: Any
) -> Any:
    """An interceptor of linen methods (`flax.linen.intercept_methods`): dropout drops nothing."""
    if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
        return arguments[0]
    return call(*arguments, **options)
