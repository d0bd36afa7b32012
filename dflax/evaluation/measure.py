"""What a measure is: equal when made again from the same parts, and clear about what it measures."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

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
    """What a loss measures on a batch, without dropout, as real numbers; of one without metrics, `loss`.

    Raises:
      TypeError: it does not return `(loss, metrics)`.
    """
    returned = loss(params, batch, None)
    pair = isinstance(returned, tuple) and len(returned) == 2
    if not pair or not (returned[1] is None or isinstance(returned[1], (dict, tuple))):
        given = f"metrics of type {type(returned[1]).__name__}" if pair else type(returned).__name__
        raise TypeError(f"loss must return (loss, metrics), metrics a dict of arrays, got {given}.")
    value, metrics = returned
    return jax.tree.map(_real, metrics or {"loss": value})


def _real(value: Any) -> Any:
    value = jnp.asarray(value)
    return value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(float)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _same(first: Any, second: Any) -> bool:
    return first is second or (_hashable(first) and _hashable(second) and bool(first == second))
