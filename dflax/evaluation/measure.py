"""What a measure is: equal when made again from the same parts, and clear about what it measures."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch
from dflax.local.oracle import Loss


class Bound:
    """A function and its first arguments; equal to another of the same function and arguments.

    jax compiles again for a function that is not equal to the one before, and `functools.partial`
    objects never are. Arguments are compared as keys of a dict are; those that cannot be, such as
    arrays and lists, must be the same object.

    Args:
      function: what is called.
      *static: its first arguments.
    """

    def __init__(self, function: Callable[..., Any], *static: Any):
        self._parts = (function, *static)

    def __call__(self, *arguments: Any) -> Any:
        """The function of the static and the given arguments."""
        function, *static = self._parts
        return function(*static, *arguments)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Bound)
            and len(self._parts) == len(other._parts)
            and all(map(_same, self._parts, other._parts))
        )

    def __hash__(self) -> int:
        return hash(tuple(hash(part) if _hashable(part) else id(part) for part in self._parts))


class OfModel(Partial):
    """A measure of one model, `params -> metrics`; `server_model` and others say of whose."""


class Recalibrated(OfModel):
    """A measure that estimates running statistics afresh, see `dflax.evaluation.recalibrated`."""


def _register(kind: type[OfModel]) -> None:
    jax.tree_util.register_pytree_node(
        kind,
        lambda measure: ((measure.args, measure.keywords), measure.func),
        lambda function, given: kind(function, *given[0], **given[1]),
    )


_register(OfModel)
_register(Recalibrated)


def metrics_of(loss: Loss, params: Params, batch: Batch) -> Metrics:
    """What a loss measures of a batch in evaluation, in float32 or wider.

    Raises:
      TypeError: the loss returns no pair of a number and a dict of numbers or arrays.
    """
    result = loss(params, batch, None)
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        pair = isinstance(result, tuple) and len(result) == 2
        kind = f"metrics of type {type(result[1]).__name__}" if pair else type(result).__name__
        raise TypeError(
            "loss must return (loss, metrics) with a dict of metrics, {} if there are none, got "
            f"{kind}. See dflax.losses.from_examples."
        )
    value, metrics = result
    return {name: _wide(name, of) for name, of in (metrics or {"loss": value}).items()}


def _wide(name: str, value: Any) -> Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"loss must measure numbers or arrays, got the metric {name!r} of type "
            f"{type(value).__name__}. Give each number a name of its own."
        ) from error
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _same(first: Any, second: Any) -> bool:
    return first is second or (_hashable(first) and _hashable(second) and bool(first == second))
