"""Exponential moving averages of parameters, kept by the optimiser that moves them."""

from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float, PyTree

from dflax import validation
from dflax.algorithm import Params


class Averaging(NamedTuple):
    """An optimiser's state beside the average of the parameters that it made.

    Attributes:
      inner: the optimiser's own state.
      average: like the parameters.
    """

    inner: PyTree[Array]
    average: Params


def averaging(
    optimizer: optax.GradientTransformation, decay: float | Float[Array, ""] = 0.999
) -> optax.GradientTransformation:
    """An optimiser that remembers the average of its parameters, from which samples are made.

        average <- decay average + (1 - decay) parameters,   after each update; it starts at them

    Any method that keeps its optimiser's state keeps the average with it; `average_of` finds it.

    Args:
      optimizer: that moves the parameters.
      decay: in [0, 1); traceable. 0 keeps the last parameters.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    fix = "For example optax.adamw(1e-4)."
    validation.instance("optimizer", optimizer, optax.GradientTransformation, fix)
    validation.probability("decay", decay, high_open=True)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> Averaging:
        return Averaging(inner.init(params), params)

    def update(
        gradients: Params, state: Averaging, params: Params | None = None, **extra: Any
    ) -> tuple[Params, Averaging]:
        if params is None:
            raise ValueError("params must be given to an optimiser that averages them, got None.")
        updates, own = inner.update(gradients, state.inner, params, **extra)
        after = optax.apply_updates(params, updates)
        average = optax.incremental_update(after, state.average, 1.0 - decay)
        return updates, Averaging(own, average)

    return optax.GradientTransformationExtraArgs(init, update)


def average_of(optimizer_state: PyTree[Array]) -> Params:
    """The average that an optimiser made with `averaging` keeps somewhere in its state.

    Args:
      optimizer_state: with one `Averaging` in it; stacked over clients it gives stacked averages.

    Raises:
      TypeError: there is none, or more than one.
    """

    def is_average(node: Any) -> bool:
        return isinstance(node, Averaging)

    found = [n for n in jax.tree.leaves(optimizer_state, is_leaf=is_average) if is_average(n)]
    if len(found) != 1:
        raise TypeError(
            f"optimizer_state must hold one average, got {len(found)} in "
            f"{validation.shown(optimizer_state)}. Make the optimiser with dflax.generative.averaging."
        )
    return found[0].average
