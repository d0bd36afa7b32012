"""Temperatures and cuts that change over a run."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation


class Annealing(NamedTuple):
    """Schedules of a run as tables over its steps; make one with `annealing`.

    Attributes:
      temperature: `[T]`, >= 1.
      cut: `[T]` in [0, 1]: 0 keeps all examples, 1 the share that the prior gives to few causes; None
        keeps all at any time, and no scores are sent.
    """

    temperature: Float[Array, " T"]
    cut: Float[Array, " T"] | None

    def at(self, number: Int[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Temperature and cut of a step; after the last one those of the last."""
        last = jnp.minimum(number, self.temperature.shape[0] - 1)
        cut = jnp.zeros(()) if self.cut is None else self.cut[last]
        return self.temperature[last], cut


def annealing(
    steps: int,
    temperature: float | Float[Array, ""] = 1.0,
    *,
    cool: float = 0.8,
    cut: bool = True,
    full: float = 2 / 3,
) -> Annealing:
    """From a temperature to 1, and from all examples to those of few causes, in straight lines.

    Args:
      steps: T >= 1, EM steps of the run.
      temperature: of the first step, >= 1; traceable.
      cool: at which share of the run it reaches 1, in (0, 1].
      cut: whether examples of many causes are cut away.
      full: at which share of the run all of those are, in (0, 1].

    Returns:
      An `Annealing`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("steps", steps, low=1)
    validation.real("temperature", temperature, low=1.0, scalar=True)
    validation.real("cool", cool, low=0.0, high=1.0, low_open=True, scalar=True)
    validation.flag("cut", cut)
    validation.real("full", full, low=0.0, high=1.0, low_open=True, scalar=True)
    done = jnp.arange(steps) / steps
    temperatures = temperature + (1 - temperature) * jnp.minimum(done / cool, 1)
    return Annealing(temperatures, jnp.minimum(done / full, 1) if cut else None)
